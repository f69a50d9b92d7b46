"""Which tests run beside which, where pytest has several processes for them (`-n 2`): a plugin of pytest.

Some mostly wait, and see how long something takes: they run one after the other. The rest mostly computes, and runs
beside them: what takes longest comes first, each file as a whole, for what its tests have in common. A test that is
marked `alone` runs beside none.
"""

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

WAITING = ("faults/", "jobs/test_run.py")
WORLDS = "jobs/test_worlds.py"
ORDER = ("jobs/test_installation.py", *WAITING, f"{WORLDS}::test_all", WORLDS, "jobs/", "")
# Any two files: what is locked is not what is in them.
DOOR, ROOM = Path(__file__), Path(__file__).with_name("__init__.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [_name(item.nodeid).startswith(begin) for begin in ORDER].index(True))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


class Scheduling(LoadScopeScheduling):
    """A group of tests is a process's; another one is taken from the list when it is done."""

    def _split_scope(self, nodeid: str) -> str:
        name = _name(nodeid)
        if name.startswith(WAITING):
            return "waiting"
        return name if name.startswith(WORLDS) else name.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Whoever waits for its turn holds the door, so that nobody overtakes it."""
    with DOOR.open() as door, ROOM.open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


def _name(nodeid: str) -> str:
    return nodeid.removeprefix("tests/")
