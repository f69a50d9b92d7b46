"""Checkpoints: where a training goes on bit for bit, whatever has ended it.

checkpoint.py       the public `Checkpoint`, as a loop and as `fit` use it
training_state.py   what is saved of a training, and how it is restored
fit_progress.py     where a call of `fit` stands
directory.py        the directory of checkpoint files
file.py             one file: there whole or not at all, believed only if its checksum holds
"""

from distgrad.checkpoint.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
