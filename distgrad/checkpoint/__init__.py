"""Checkpoints: a training that was ended by anything goes on from its last one, bit for bit.

checkpoint.py       the public `Checkpoint`, as a loop and as `fit` use it
training_state.py   what is saved of a training, and how it is restored
metadata.py         the description of a training in a file, checked before anything is restored
fit_progress.py     how far a call of `fit` has come
directory.py        the directory of checkpoint files
file.py             one file: there whole or not at all, used only if its checksum holds
"""

from distgrad.checkpoint.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
