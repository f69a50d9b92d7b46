"""Real faults in real jobs: what is done to which worker, and what must come of it within which time.

    PYTHONPATH=tests python -m faults.inject [--repeat 20] [--engine mpi] [NAME ...]

The suite does each once (test_inject.py). The numbers are those of the rows in faults.md. Whatever was done, in the end
no process of the job may be left, and nothing in /dev/shm.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from support import memory_limit
from support.launching import TESTS, start_workers
from support.processes import left_in_shared_memory, state, wait_until, with_environment

WORKER = TESTS / "support" / "faulty_worker.py"
START = 90.0  # seconds until the workers take steps
READY = re.compile(r"rank (\d+) process (\d+) now")
LOST = r"error\[DG060\] rank=1 step=\d+: rank 1 \(process \d+\) ended"
LATE = r"error\[DG061\] rank=1 step=\d+: rank 1 has not arrived at the sum within 5 s"
GIVEN_UP = LATE.replace("5 s", r"(?:9|1\d) s")  # as long as TensorFlow has waited
STOPPED = r"error\[DG064\] rank=- step=\d+: asked to stop"
SKIPPED = r"error\[DG036\] rank=- step=\d+: 5 steps in a row"
FLIPPED = r"error\[DG022\] rank=1 step=10: variable \S+kernel on rank 1"
KILLED = LOST + " by signal 9, possibly out of memory"
BOUND = 5.0 + 5.0  # seconds: the workers' deadline and what it takes
TIDY = 20.0  # seconds until launchers and helpers have ended, too


class Fault(NamedTuple):
    """One row.

    Attributes:
        does: what faulty_worker.py calls it; from outside, a signal for the launcher.
        seconds: until all processes are gone.
        status: of each engine's launcher, and of the workers that TensorFlow's user starts; engines not named are
            those where it is not tried.
        says: what stderr has, each once.
        timeout: seconds that workers wait for each other.
    """

    does: str
    seconds: float
    status: Mapping[str, int | tuple[int, int]]
    says: tuple[str, ...] = ()
    timeout: float = 5


GLOO, MWMS = "horovod-gloo", "mwms"
OUT_OF_MEMORY = "36 out of memory"
FAULTS = {
    "1 killed in a sum": Fault("kill in a sum", 6.5, {"mpi": 137, GLOO: 1, MWMS: (75, -9)}, (KILLED,)),
    "2 killed between sums": Fault("kill", 5, {"mpi": 137, GLOO: 1, MWMS: (75, -9)}, (KILLED,)),
    "3 stopped": Fault("stop", BOUND, {"mpi": 75, GLOO: 1, MWMS: (75, -9)}, (LATE,)),
    "3 stopped, T = 60": Fault("stop", 25, {MWMS: (75, -9)}, (GIVEN_UP,), timeout=60),
    "4 in a loop": Fault(
        "loop", BOUND, {"mpi": 75, GLOO: 1, MWMS: (75, -9)}, (LATE, r'faulty_worker.py", line \d+ in loop')
    ),
    "5 exception": Fault("raise", 3, {"mpi": 70, GLOO: 1, MWMS: (75, 70)}, ("ValueError: bad sample in file 7",)),
    "6 leaves with 0": Fault("_exit(0)", 3, {"mpi": 1, GLOO: 1, MWMS: (75, 0)}, (LOST + " with status 0",)),
    "7 sys.exit(3)": Fault("exit(3)", 9, {"mpi": 3, GLOO: 1, MWMS: (75, 3)}, ("rank 1 ended with status 3",)),
    "7 returns early": Fault("return", 9, {"mpi": 75, GLOO: 1, MWMS: (75, 0)}, ("rank 1 ended with status 0 while",)),
    "8 launcher killed": Fault("SIGKILL", 5, {"mpi": -9, GLOO: -9}),
    "9 SIGTERM": Fault("terminate", 10, {"mpi": 85, GLOO: 1, MWMS: (85, 85)}, (STOPPED,)),
    "10 Ctrl-C twice": Fault("interrupt twice", 4, {"mpi": 130, GLOO: 1, MWMS: (75, 130)}),
    "19 NaN for ever": Fault("NaN", 5, {"mpi": 65, GLOO: 1, MWMS: (65, 65)}, (SKIPPED,)),
    "21 bit flipped": Fault("flip a bit", 5, {"mpi": 70, GLOO: 1, MWMS: (70, 70)}, (FLIPPED,)),
    OUT_OF_MEMORY: Fault("run out of memory", 6, {"mpi": 137, GLOO: 1, MWMS: (75, -9)}, (KILLED,)),
}


class Trial:
    """One job that something happens to."""

    def __init__(self, name: str, engine: str) -> None:
        self._fault, self._engine = FAULTS[name], engine
        self._mark = {"DISTGRAD_TEST_FAULT": uuid.uuid4().hex}
        self._shared = left_in_shared_memory()
        settings = {"DISTGRAD_TIMEOUT": f"{self._fault.timeout:g}", **self._mark}
        self._jobs = start_workers(engine, 2, [WORKER, self._fault.does], env=settings)
        self._lines: list[list[str]] = [[] for _ in self._jobs]
        self._errors: list[list[str]] = [[] for _ in self._jobs]
        self._readers = [
            threading.Thread(target=lines.extend, args=(stream,), daemon=True)
            for job, lines, errors in zip(self._jobs, self._lines, self._errors, strict=True)
            for stream, lines in ((job.stdout, lines), (job.stderr, errors))
        ]

    def run(self) -> float:
        """Do it, and check what came of it. Returns the seconds that it took."""
        try:
            return self._run()
        finally:
            self._end()

    def _run(self) -> float:
        for reader in self._readers:
            reader.start()
        processes = self._wait_until_ready()
        began = time.monotonic()
        if self._fault.does.startswith("SIG"):
            os.kill(self._jobs[0].pid, signal.Signals[self._fault.does])
        for process in processes:
            while is_running(process) and time.monotonic() < began + self._fault.seconds + 10:
                time.sleep(0.02)
        took = time.monotonic() - began
        left = [process for process in processes if is_running(process)]
        for process in left:
            os.kill(process, signal.SIGKILL)
        for process in processes:
            memory_limit.remove(process)
        self._check(took, left)
        return took

    def _wait_until_ready(self) -> list[int]:
        end = time.monotonic() + START
        may_start = True
        while may_start:
            # A job may have ended already: what counts is whether all of its lines have been read.
            may_start = time.monotonic() < end and any(reader.is_alive() for reader in self._readers)
            found = {rank: int(process) for rank, process in READY.findall(self._text(self._lines))}
            if len(found) == 2:
                return list(found.values())
            time.sleep(0.02)
        raise AssertionError("the job did not start: " + self._text(self._errors)[-3000:])

    def _check(self, took: float, left: list[int]) -> None:
        for job in self._jobs:
            job.wait(20)
        for reader in self._readers:
            reader.join(10)
        errors = self._text(self._errors)
        expected = self._fault.status[self._engine]
        status = tuple(job.returncode for job in self._jobs)
        assert not left, f"still running: {left}\n{errors}"
        assert took < self._fault.seconds, f"{took:.1f} s\n{errors}"
        assert status == (expected if isinstance(expected, tuple) else (expected,)), f"{status}\n{errors}"
        for text in self._fault.says:
            assert len(re.findall(text, errors)) == 1, f"not once: {text}\n{errors}"
        wait_until(lambda: not self._left_behind(), TIDY, self._left_behind)

    def _end(self) -> None:
        for process in with_environment(self._mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for job in self._jobs:
            job.kill()
            job.wait(20)
        for reader in self._readers:
            reader.join(10)
        for job in self._jobs:
            job.stdout.close()
            job.stderr.close()

    def _left_behind(self) -> set[object]:
        """Process numbers and files."""
        return {*with_environment(self._mark), *(left_in_shared_memory() - self._shared)}

    @staticmethod
    def _text(lines: list[list[str]]) -> str:
        return "".join(line for one in lines for line in list(one))


def is_running(process: int) -> bool:
    return state(process) not in ("", "Z")


def can_be_done(name: str) -> bool:
    return name != OUT_OF_MEMORY or memory_limit.can_limit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(FAULTS))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--engine", default="mpi")
    chosen = parser.parse_args()
    names = [name for name in FAULTS if any(name.startswith(one) for one in chosen.names)]
    names = [name for name in names if chosen.engine in FAULTS[name].status and can_be_done(name)]
    failed = 0
    for name in names:
        times = []
        for _ in range(chosen.repeat):
            try:
                times.append(Trial(name, chosen.engine).run())
            except (AssertionError, subprocess.TimeoutExpired) as error:
                print(f"{name}: {error}", file=sys.stderr)
        failed += chosen.repeat - len(times)
        most = f"{max(times):.1f} s" if times else "-"
        print(f"| {name} | {chosen.engine} | {len(times)} of {chosen.repeat} | {most} |", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
