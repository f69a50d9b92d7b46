"""kill -9 of a random process of a job at a random moment, again and again; nothing may be left.

    PYTHONPATH=tests python -m faults.kills [--times 1000] [--seed 0] ["distgrad run" | mpirun]

Two workers sum in memory that they share, over and over. Killed is one of them, or what launched them, at any moment
from the launch on, so mostly while they start. Afterwards no process of the job may be left within the bound, no shared
memory and no file, and the status must say that a worker was lost. It takes the right to a mount namespace, in which
whatever stays in /dev/shm and in the folder for temporary files is the job's. Ctrl-C ends it and shows what came of it
until then.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from support import mounts
from support.launching import BIN, CLEAN, TESTS
from support.processes import mpiruns, with_environment, workers

SUMMING = str(TESTS / "support" / "summing_worker.py")
BOUND = 10.0  # seconds until nothing is left
SIZE = 2
BEYOND = 1.3  # of the time that a job needs to start: the last moment at which it is killed
LAUNCHERS = {
    "distgrad run": [str(BIN / "distgrad"), "run", "--backend", "mpi", "--oversubscribe"],
    "mpirun": ["mpirun", "--oversubscribe"],
}
LOST = {"distgrad run": 75, "mpirun": 137}  # what they return if it is not they who are killed


class Job:
    """What is launched and killed.

    Args:
        launcher: one of LAUNCHERS.
        number: another for each job.
    """

    def __init__(self, launcher: str, number: int) -> None:
        self._mark = {"DISTGRAD_TEST_KILLS": f"{os.getpid()} {number}"}
        command = [*LAUNCHERS[launcher], "-np", str(SIZE), sys.executable, SUMMING]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command, env=CLEAN | self._mark, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._said = b""
        self.started = 0.0  # seconds after which all workers had summed; 0 if they have not

    def wait(self, until: Callable[[], bool], seconds: float) -> float:
        """Wait for something, but not longer than that. Returns how long it took."""
        began = time.monotonic()
        while not until() and time.monotonic() < began + seconds:
            self._listen()
            if not self.started and self._said.count(b"summing") == SIZE:
                self.started = time.monotonic() - self._began
            time.sleep(0.005)
        return time.monotonic() - began

    def kill(self, victim: str) -> None:
        """As soon as it is there."""
        found: list[int] = []

        def find() -> bool:
            found[:] = self._find(victim)
            return bool(found)

        self.wait(find, BOUND)
        os.kill(found[0], signal.SIGKILL)

    @property
    def state(self) -> str:
        return "summing" if self.started else "starting"

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def said(self) -> str:
        """All its output."""
        return self._said.decode(errors="replace")

    def is_gone(self) -> bool:
        return self._process.poll() is not None and not with_environment(self._mark)

    def close(self) -> list[int]:
        """Kill what is left."""
        left = with_environment(self._mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self._listen()
        self._process.stdout.close()
        return sorted(left)

    def _listen(self) -> None:
        self._said += self._process.stdout.read() or b""

    def _find(self, victim: str) -> list[int]:
        if victim == "mpirun":
            return mpiruns(self._mark, SUMMING)
        if victim == "distgrad run":
            return [self._process.pid]
        return [pid for rank, pid in workers(self._mark, SUMMING).items() if victim == f"worker {rank}"]


class Kills:
    """So many of them, and what came of them."""

    def __init__(self, launcher: str, seed: int) -> None:
        self._launcher, self._random = launcher, random.Random(seed)
        self._victims = [*dict.fromkeys(["mpirun", launcher]), *(f"worker {rank}" for rank in range(SIZE))]
        self._start = 10.0  # seconds that the last job needed, or more than so many
        self.done, self.longest = Counter[tuple[str, str]](), 0.0
        self.complaints = 0

    def run(self, times: int) -> None:
        """Ctrl-C ends it earlier."""
        for number in range(times):
            job = Job(self._launcher, number)
            try:
                self._kill(job, number)
            except KeyboardInterrupt:
                job.close()
                return

    def _kill(self, job: Job, number: int) -> None:
        victim = self._random.choice(self._victims)
        moment = self._random.uniform(0, BEYOND * self._start)
        job.wait(lambda: False, moment)
        job.kill(victim)
        took = job.wait(job.is_gone, BOUND)
        expected = -signal.SIGKILL if victim == self._launcher else LOST[self._launcher]
        if job.status != expected:
            self._complain(job, number, victim, f"status {job.status}, not {expected}")
        self._start = job.started or max(self._start, moment)
        self.longest = max(self.longest, took)
        self.done[victim, job.state] += 1
        for pid in job.close():
            self._complain(job, number, victim, f"process {pid} is left")
        for path in mounts.take_what_is_left():
            self._complain(job, number, victim, f"{path} is left")

    def _complain(self, job: Job, number: int, victim: str, of: str) -> None:
        self.complaints += 1
        print(f"job {number}, {victim} killed while {job.state}: {of}\n{job.said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launcher", nargs="?", choices=LAUNCHERS, default="distgrad run")
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    mounts.begin_again()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
    kills = Kills(chosen.launcher, chosen.seed)
    kills.run(chosen.times)
    for (victim, state), times in sorted(kills.done.items()):
        print(f"| {victim} | {state} | {times} |")
    print(
        f"{kills.done.total()} kills, complaints: {kills.complaints}, longest until all had gone: {kills.longest:.1f} s"
    )
    sys.exit(bool(kills.complaints))


if __name__ == "__main__":
    main()
