"""Another user of this host, who does what the rights of files allow: user 65534, as whom root may run commands."""

import os
import subprocess
from pathlib import Path

import pytest

USER = 65534

needs_strangers = pytest.mark.skipif(os.geteuid() != 0, reason="running commands as another user takes root")


def does(command: str, *words: object) -> None:
    """Have a stranger run a shell's command, in which the words are $1, $2, ..."""
    subprocess.run(
        ["sh", "-ec", command, "sh", *map(str, words)], user=USER, group=USER, extra_groups=[], cwd="/", check=True
    )


def remove(path: Path) -> None:
    """Remove what a stranger has made."""
    does('rm -rf "$1"', path)
