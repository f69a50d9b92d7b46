"""Which tests run beside which, where pytest has several processes for them (`-n 2`).

Some mostly wait, and see how long something takes: they run one after the other. The rest mostly computes, and runs
beside them: what takes longest comes first, each file as a whole, for what its tests have in common.
"""

from xdist.scheduler import LoadScopeScheduling

WAITING = ("faults/", "jobs/test_run.py")
WORLDS = "jobs/test_worlds.py"
ORDER = ("jobs/test_installation.py", *WAITING, f"{WORLDS}::test_all", WORLDS, "jobs/", "")


def place(test: str) -> int:
    """In the order in which tests are begun."""
    return [_inside(test).startswith(begin) for begin in ORDER].index(True)


class Scheduling(LoadScopeScheduling):
    """A group of tests is a process's; another one is taken from the list when it is done."""

    def _split_scope(self, nodeid: str) -> str:
        test = _inside(nodeid)
        if test.startswith(WAITING):
            return "waiting"
        return test if test.startswith(WORLDS) else test.partition("::")[0]


def _inside(test: str) -> str:
    return test.removeprefix("tests/")
