"""One training step over all workers.

distributed_step.py   the public `DistributedStep`: the order of events, seen from outside the graph
plan.py               what a step is made of, learned from the model and its first batch
graph.py              the step inside the compiled graph
update.py             the gradient into the optimizer
optimizer_scope.py    the optimizer under tf.distribute
evaluation.py         a step without gradients
guards.py, drift.py   stop, skipped steps, weights that are no longer alike
"""

from distgrad.step.distributed_step import DistributedStep

__all__ = ["DistributedStep"]
