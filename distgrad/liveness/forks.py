"""Processes that are forked from a worker: they inherit its memory and its handlers, and are no workers.

What such a child does, and how it ends, is nothing to the job; nor may it be hindered by what it has inherited.
"""

import functools
import os
import signal
import threading
import weakref
from typing import Protocol

from distgrad.liveness.stop_signals import SIGNALS


class Inherited(Protocol):
    """A thing that a child must not use as the worker does."""

    def become_child(self) -> None:
        """Give up what is the worker's; called in the child, before anything else runs there."""
        ...


_inherited: "weakref.WeakSet[Inherited]" = weakref.WeakSet()


def give_up_in_children(thing: Inherited) -> None:
    """Have a thing told in every process that is forked from this one, as long as it is there."""
    _register_once()
    _inherited.add(thing)


@functools.cache
def _register_once() -> None:
    """Register with Python, which takes no registration back."""
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_begin_as_child)


_masks = threading.local()  # signals that a thread had blocked before it forked


def _hold_signals() -> None:
    """Let signals wait: a child would lose one that comes before it knows that it is a child."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _begin_as_child() -> None:
    for thing in list(_inherited):
        thing.become_child()
    _release_signals()
