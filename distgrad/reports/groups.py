"""Groups of variables: labels, and regular expressions over the variables' paths."""

import re
from collections.abc import Mapping, Sequence

from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument, warn


def pattern_of(label: str, text: str) -> re.Pattern[str]:
    """A group's regular expression.

    Raises:
        BadArgument: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise BadArgument(
            f"group {label!r} has the pattern {text!r}: {error}", "give a regular expression", everywhere=True
        ) from None


def members_of(groups: Mapping[str, re.Pattern[str]], paths: Sequence[str], comm: Communicator) -> dict[str, list[int]]:
    """The variables of each group, by number; the root warns of a group without any."""
    members = {
        label: [index for index, path in enumerate(paths) if pattern.search(path)] for label, pattern in groups.items()
    }
    for label, found in members.items():
        if not found and comm.is_root:
            known = ", ".join(paths)
            warn(f"group {label!r}: no variable matches {groups[label].pattern!r}; there are {known}")
    return members
