"""Groups of variables, each a label and a regular expression that is searched in the variables' paths."""

import re
from collections.abc import Mapping, Sequence

from distgrad.errors import BadArgument, warn


def pattern_of(label: str, text: str) -> re.Pattern[str]:
    """Compile the regular expression of a group.

    Raises:
        BadArgument: it is not a regular expression.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise BadArgument(
            f"group {label!r} has the pattern {text!r}: {error}", "give a regular expression", everywhere=True
        ) from None


def members_of(groups: Mapping[str, re.Pattern[str]], paths: Sequence[str], *, is_root: bool) -> dict[str, list[int]]:
    """Find the variables of each group.

    Args:
        paths: path of each variable.
        is_root: True on the root, which warns of groups without variables.

    Returns:
        For each label the indices in `paths`, ascending.
    """
    members = {
        label: [index for index, path in enumerate(paths) if pattern.search(path)] for label, pattern in groups.items()
    }
    for label, found in members.items():
        if not found and is_root:
            known = ", ".join(paths)
            warn(f"group {label!r}: no variable matches {groups[label].pattern!r}; there are {known}")
    return members
