"""Public names of `distgrad.reports`: listeners for `DistributedStep(listeners=...)`, imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgrad.reports.alarms import Alarms
    from distgrad.reports.listeners import Listener
    from distgrad.reports.live import Live
    from distgrad.reports.log_file import LogFile
    from distgrad.reports.tensorboard import TensorBoard

__all__ = ["Alarms", "Listener", "Live", "LogFile", "TensorBoard"]

_MODULES = {
    "Alarms": "alarms",
    "Listener": "listeners",
    "Live": "live",
    "LogFile": "log_file",
    "TensorBoard": "tensorboard",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'distgrad.seeing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distgrad.reports.{_MODULES[name]}"), name)
