"""Programs that are run under a time limit."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.launching.environment import launcher_settings

TIME_LIMIT = 90.0  # seconds


class ProcessFailed(Exception):
    """A program that crashed, hung or printed nothing; the text says which."""


def run_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """Run Python and return what it prints last, read as JSON.

    Args:
        arguments: Python's own, `["-c", "..."]` for instance.
        environment: variables to add.

    Raises:
        ProcessFailed: it crashed, hung or printed nothing.
    """
    done = run_program([sys.executable, *arguments], {**launcher_settings(os.environ), **(environment or {})})
    if done.returncode:
        raise ProcessFailed(error_line(done.stderr) or f"it ended with status {done.returncode}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ProcessFailed("it printed nothing") from None


def run_program(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program under the time limit, with these variables added to the environment.

    Raises:
        ProcessFailed: it hung.
    """
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    null = subprocess.DEVNULL
    try:
        return subprocess.run(
            command, env=variables, stdin=null, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"no answer within {TIME_LIMIT:g} s") from None


def error_line(text: str) -> str:
    """Return the most useful line of a program's standard error: an error of distgrad's, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "distgrad: error[" in line]
    return (errors or lines or [""])[-1]
