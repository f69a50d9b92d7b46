"""Everything that a model gives for a batch, as sums: losses, the losses that layers add, metrics, assigned states.

losses.py                all losses of a model together, as sums
loss_sources.py          where they come from: a loss, `compile`, or a `compute_loss` of the model's own
terms.py                 one loss of a micro-batch as numerator and divisor
forward.py               the forward pass, and what it would assign
states.py                states, which a pass assigns
kinds.py                 what a value is of a batch: a mean, a sum, the same for every part, or known from all rows only
trial.py                 a trial on real rows that tells the kinds; model_trial.py, that of a model's values
global_batch.py          outputs gathered from all workers, for what is known from all rows only
trace.py                 a throw-away trace, to learn what a function of a batch gives
batch_normalization.py   batch normalization over all workers, for layers that ask for it
metrics.py               metrics as sums
extra_sums.py            the protocol of whatever is summed along with the gradients
"""
