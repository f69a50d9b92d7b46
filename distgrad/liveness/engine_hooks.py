"""Functions of an engine that liveness needs to end a job; the engine's communicator hands them in."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distgrad.liveness.processes import kill


def _do_nothing(*_: int) -> None:
    pass


class Elsewhere(NamedTuple):
    """The ranks that do not wait in a sum, on any host; none where an engine cannot tell.

    Attributes:
        silent: of which nothing is heard.
        at_work: that will come, see `Liveness.at_work`.
    """

    silent: Sequence[int] = ()
    at_work: Sequence[int] = ()


class EngineHooks(NamedTuple):
    """Functions of one engine; the defaults suit an engine that has nothing special to do.

    Attributes:
        exchange: gives every process every process's text, by rank.
        leave_together: waits until all workers are about to end, since a launcher kills the others when one ends.
        introduces_at_start: True if `exchange` may be called as soon as the watchdog runs; else it waits for
            `Liveness.introduce()`, since the program may still want to configure TensorFlow.
        abort: ends the other workers, which may wait in a sum that this one will never reach; takes the exit status.
        end_stuck: ends processes of this host that do not listen, before this one ends; takes their pidfds.
        ask: asks all ranks whether they wait or work; called by one that waits.
        answer: tells those that have asked; takes True if this process works, False if it waits.
        remove_leftovers: removes what the launcher, which is gone, has left behind on this host.
    """

    exchange: Callable[[str], Mapping[int, str]]
    leave_together: Callable[[], None]
    introduces_at_start: bool = False
    abort: Callable[[int], None] = _do_nothing
    end_stuck: Callable[[Sequence[int]], None] = kill
    ask: Callable[[], Elsewhere] = Elsewhere
    answer: Callable[[bool], None] = _do_nothing
    remove_leftovers: Callable[[], None] = _do_nothing
