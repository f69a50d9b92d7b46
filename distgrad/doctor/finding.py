"""One thing that was looked at."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distgrad.launching.environment import launcher_settings

OK, NOTE, ABSENT, PROBLEM = "ok", "note", "absent", "problem"
CLOCK = 90.0  # seconds for a process of its own


class Finding(NamedTuple):
    """What was looked at, how it is ("ok", "note", "absent" or "problem"), what was found, and what puts it right."""

    check: str
    status: str
    found: str
    fix: str = ""


class Failed(Exception):
    """A process of its own failed; the text is its last line."""


def ask(program: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """Run Python in a process of its own. Gives what it prints last, read as JSON.

    Raises:
        Failed: it crashed, hung or printed nothing.
    """
    done = call([sys.executable, *program], {**launcher_settings(os.environ), **(environment or {})})
    if done.returncode:
        raise Failed(telling(done.stderr) or f"it ended with status {done.returncode}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise Failed("it printed nothing") from None


def call(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program under the clock, with so much more in its environment.

    Raises:
        Failed: it hung.
    """
    settings = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    nothing = subprocess.DEVNULL
    try:
        return subprocess.run(
            command, env=settings, stdin=nothing, capture_output=True, text=True, timeout=CLOCK, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {CLOCK:g} s") from None


def telling(text: str) -> str:
    """The line of an error's output that says most: distgrad's own, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if "distgrad: error[" in line]
    return (ours or lines or [""])[-1]
