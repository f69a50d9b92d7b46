"""Keras's own compile, fit, evaluate and predict, on all workers.

trainer.py     the public `distribute()`, and the methods that a distributed model has instead of Keras's
data.py        the data of a call: this worker's share, as a dataset for Keras
global_data.py datasets that are the same on every worker, recognised and shared out
order.py       the order in which they come, the same on every worker and again after a resume
own_step.py    a train_step or test_step of the user's own, run on one worker; own_passes.py, on micro-batches
own_trial.py   what the values of such a step are of a batch; own_values.py, those besides the weights
own_training.py   training and evaluation by such a step; own_reduction.py, the sums of its gradients
functions.py   the train and test functions that Keras calls for every batch
callbacks.py   which callbacks run where; `WarmUp`
"""

from distgrad.fit.trainer import distribute

__all__ = ["distribute"]
