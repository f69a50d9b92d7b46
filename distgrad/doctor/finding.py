"""The result of one check."""

from typing import NamedTuple

OK, NOTE, ABSENT, PROBLEM = "ok", "note", "absent", "problem"


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        check: the name of the check.
        status: OK, NOTE, ABSENT or PROBLEM.
        found: one sentence about what was found.
        fix: what the reader can do about it; empty where there is nothing to do.
    """

    check: str
    status: str
    found: str
    fix: str = ""
