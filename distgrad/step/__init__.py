"""One training step over all workers.

distributed_step.py   the public `DistributedStep`: the order of events, seen from outside the graph
training_graph.py     the step inside the compiled graph
update.py             the gradient into the optimizer
sharding.py           whether each worker updates its own slice of the weights
sharded_update.py     the update by slices; slices.py, which these are
sharded_state.py      the optimizer's state, in slices and whole; slice_transfer.py, how it gets there
config.py, plan.py    the settings of a step; what it learns of a model before it is traced
wire.py               what its gradients cross the wire between hosts as
start.py              all workers build the model and compare settings and versions
optimizer_scope.py    the optimizer under tf.distribute
same_weights.py       the root's weights on every worker, sent where they differ
assignments.py        weights that a program sets between two steps
guards.py, drift.py   stop, skipped steps, weights that are no longer alike
evaluation.py         losses and metrics without a training step
"""

from distgrad.step.distributed_step import DistributedStep

__all__ = ["DistributedStep"]
