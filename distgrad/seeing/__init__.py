"""Seeing the gradient: what a step tells beyond its line, and where that goes.

own.py, watch.py   what rides in the step's one sum when it is asked for
told.py            what becomes of it: a report's further numbers
noise.py           the gradient noise scale
updates.py         how far a step moves the weights
listeners.py       who hears of every step; its first lines name the files
history.py         a log file read back, however long it is
page.py            the page that `distgrad report` makes of it
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgrad.seeing.alarms import Alarms
    from distgrad.seeing.listeners import Listener
    from distgrad.seeing.live import Live
    from distgrad.seeing.logfile import LogFile
    from distgrad.seeing.tensorboard import TensorBoard

__all__ = ["Alarms", "Listener", "Live", "LogFile", "TensorBoard"]

_ROOMS = {name: name.lower() for name in __all__} | {"Listener": "listeners"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'distgrad.seeing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distgrad.seeing.{_ROOMS[name]}"), name)
