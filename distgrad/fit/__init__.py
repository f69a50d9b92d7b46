"""Keras's own compile, fit, evaluate and predict, on all workers.

trainer.py     the public `distribute()`: what stands between a model's methods and Keras's
data.py        what fit is given, as this worker's share
callbacks.py   which callbacks run where; `WarmUp`
"""

from distgrad.fit.trainer import distribute

__all__ = ["distribute"]
