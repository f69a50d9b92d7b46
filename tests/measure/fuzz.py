"""Fuzzing of what comes from outside: PYTHONPATH=tests python -m measure.fuzz [--seconds 60] [target ...]

Each case is made from its number. A case that ends with anything else than the right result or one clear error is
printed with its number, which `--case` runs again alone. Exit status 1 if there was one.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from support.fuzz_targets import TARGETS, generator

SHOWN_FAILURES = 5


def fuzz(name: str, run: Callable[[Random], None], first: int, seconds: float) -> tuple[int, list[int]]:
    """Run cases until the time is over. Returns how many there were, and the numbers of those that failed."""
    until, case, failed = time.monotonic() + seconds, first, list[int]()
    while time.monotonic() < until and len(failed) < SHOWN_FAILURES:
        try:
            run(generator(name, case))
        except Exception:  # whatever a case comes across
            failed.append(case)
            print(f"{name}, case {case}:\n{traceback.format_exc()}", flush=True)
        case += 1
    return case - first, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all by default")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this case alone")
    options = parser.parse_args()
    found = 0
    for name in options.targets or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            run = TARGETS[name](Path(folder))
            if options.case is not None:
                run(generator(name, options.case))
                continue
            cases, failed = fuzz(name, run, options.first, options.seconds)
        print(f"{name}: {cases} cases, {len(failed)} failed", flush=True)
        found += len(failed)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
