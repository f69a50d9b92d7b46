"""Processes that are forked from a worker: they inherit its memory and its handlers, and are no workers.

What such a child does, and how it ends, is nothing to the job; nor may it be hindered by what it has inherited.
"""

import functools
import os
import weakref
from typing import Protocol


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
    os.register_at_fork(after_in_child=_tell_all)


def _tell_all() -> None:
    for thing in list(_inherited):
        thing.become_child()
