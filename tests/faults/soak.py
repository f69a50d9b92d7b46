"""A real training to which things keep happening at random, and of which nothing may be lost.

    PYTHONPATH=tests python -m faults.soak [--minutes 30] [--workers 2] [--seed 0] [--gap 20] [FAULT ...]

It runs under `distgrad run --max-restarts`, which goes on by itself after a lost worker; otherwise it is launched again
from here, as a batch system would. When the time is over it is told to stop, and its last checkpoint must be, byte for
byte, that of a training of as many steps to which nothing happened. So must be every line that it printed of a step,
but for the time. It takes the right to a mount namespace, in which whatever stays in /dev/shm and in the folder for
temporary files is its own.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from distgrad.checkpoint import file as checkpoint_file
from distgrad.checkpoint.directory import CheckpointDirectory
from support import mounts
from support.launching import BIN, TESTS, start
from support.processes import mpiruns, with_environment, workers

TRAINING = str(TESTS / "support" / "soak_worker.py")
FOLDER, UNBROKEN = mounts.SHM / "soak", mounts.SHM / "unbroken"
MARK = {"DISTGRAD_TEST_SOAK": "1"}
DISK = "4m"  # some nine checkpoints
TIMEOUT = 5.0  # seconds that a worker waits for another
BOUND = 20.0  # seconds until a job that trains is launched again, or has ended
START = 90.0  # seconds until it trains, or one that has not begun to is launched again
STARTING = 30.0  # seconds that workers wait for each other at the start
STEP = re.compile(r"step (\d+) \|")
BEGAN = re.compile(r"began at (\d+)$")
AGAIN = "distgrad: warning: restart"
SHOWN = 300  # characters of what differs
FULL = "could not be written (No space left on device)"
TOLD = (85, 75, 143, -signal.SIGTERM)  # the others where it had not begun to train


class Record:
    """The steps of a training, from its lines."""

    def __init__(self) -> None:
        self.last = self.fresh = self.resumed = self.again = 0
        self.told: dict[int, str] = {}
        self.differing: set[int] = set()

    def hear(self, line: str) -> None:
        if began := BEGAN.match(line):
            self.again += max(0, self.last - int(began[1]))
            self.last, self.resumed, self.fresh = int(began[1]), self.resumed + 1, 0
        elif step := STEP.match(line):
            self.last, self.fresh = int(step[1]), self.fresh + 1
            text = line.rpartition(" | ")[0]
            if self.told.setdefault(self.last, text) != text:
                self.differing.add(self.last)


class Soak:
    """The training, and what is done to it.

    Args:
        gap: seconds between two faults, on average.
    """

    def __init__(self, size: int, seed: int, gap: float, faults: list[str]) -> None:
        self._size, self._gap, self._faults = size, gap, faults
        self._random = random.Random(seed)
        self.record, self.errors = Record(), list[str]()
        self.done, self.longest = Counter[str](), dict[str, float]()
        self._damaged: set[str] = set()
        self._launch()

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for name in self._chosen():
            self._leave_alone(min(self._random.uniform(0, 2 * self._gap), end - time.monotonic()))
            if time.monotonic() >= end:
                return
            self._inflict(name)

    def stop(self) -> int:
        """Let it save and end once it takes steps. Returns how many it has taken."""
        self._until(lambda: self.record.resumed > self._resumed and self.record.fresh > 0, START)
        self._job.terminate()
        self._until(self._has_ended, BOUND)
        self._require(self._job.returncode == 85, f"status {self._job.returncode}")
        self._wait_until_gone()
        unnamed = {name for name in self._damaged if not self._said(f"{name} is damaged")}
        self._require(not unnamed, f"no word of the damage to {unnamed}")
        return steps_in(FOLDER)

    def _launch(self) -> None:
        self._resumed = self.record.resumed
        self._job = launch(self._size, self.record, self.errors, FOLDER, "--pause", 0.02)

    # ---- one fault

    def _chosen(self) -> Iterator[str]:
        """Every fault as often, in random order."""
        while True:
            yield from self._random.sample(self._faults, len(self._faults))

    def _inflict(self, name: str) -> None:
        fault, before, began = FAULTS[name], self._said(AGAIN), time.monotonic()
        if not fault.does(self):
            return
        print(f"step {self.record.last}: {name}", file=sys.stderr, flush=True)
        self.done[name] += 1
        if fault.ends is not None:
            trains = self.record.resumed > self._resumed
            self._until(lambda: self._has_ended() or self._said(AGAIN) > before, BOUND if trains else START)
            self._resumed = self.record.resumed
        if self._has_ended():
            self._require(self._job.returncode in (fault.ends or ()), f"status {self._job.returncode}")
            self._wait_until_gone()
        self.longest[name] = max(self.longest.get(name, 0.0), time.monotonic() - began)
        if self._has_ended():
            fault.then(self)
            self._launch()

    def _leave_alone(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._require(not self._has_ended(), f"ended by itself, with status {self._job.returncode}")
            time.sleep(0.02)

    def _has_ended(self) -> bool:
        return self._job.poll() is not None

    def _said(self, text: str) -> int:
        """How many lines of its errors have it."""
        return sum(text in line for line in list(self.errors))

    def _wait_until_gone(self) -> None:
        self._until(lambda: not with_environment(MARK), BOUND)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self._require(time.monotonic() < end, f"nothing came of it in {seconds:g} s")
            time.sleep(0.02)

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise SystemExit(f"{''.join(self.errors[-40:])}{otherwise}, after {sum(self.done.values())} faults")

    # ---- what may be done

    def signal_worker(self, number: signal.Signals) -> bool:
        return signalled(workers(MARK, TRAINING).get(self._random.randrange(self._size)), number)

    def signal_mpirun(self, number: signal.Signals) -> bool:
        return signalled(next(iter(mpiruns(MARK, TRAINING)), None), number)

    def signal_command(self, number: signal.Signals) -> bool:
        return signalled(self._job.pid, number)

    def damage(self, how: Callable[[bytearray], None]) -> None:
        """Damage the newest checkpoint, once, if there is another to go back to."""
        newest, *others = [path.name for path in CheckpointDirectory(FOLDER, 1).paths()] or [""]
        if newest not in self._damaged and set(others) - self._damaged:
            content = bytearray((FOLDER / newest).read_bytes())
            how(content)
            (FOLDER / newest).write_bytes(content)
            self._damaged.add(newest)

    def flip(self, content: bytearray) -> None:
        content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)

    def cut(self, content: bytearray) -> None:
        del content[self._random.randrange(len(content)) :]

    def fill_disk(self) -> bool:
        """Leave no room for a checkpoint until that was said."""
        before, filler = self._said(FULL), FOLDER / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            self._until(lambda: self._said(FULL) > before, START)
        finally:
            filler.unlink()
        return True


class Fault(NamedTuple):
    """What is done to the training, and what may come of it.

    Attributes:
        does: whether there was anybody to do it to.
        ends: statuses with which `distgrad run` may end if it does not launch again by itself; None: nothing ends.
        then: what is done before the next launch.
    """

    does: Callable[[Soak], bool]
    ends: tuple[int, ...] | None = ()
    then: Callable[[Soak], None] = lambda _: None


def _kill_command(soak: Soak) -> bool:
    return soak.signal_command(signal.SIGKILL)


FAULTS = {
    "worker killed": Fault(lambda soak: soak.signal_worker(signal.SIGKILL)),
    "worker stopped": Fault(lambda soak: soak.signal_worker(signal.SIGSTOP)),
    "worker raises": Fault(lambda soak: soak.signal_worker(signal.SIGUSR2), (70,)),
    "mpirun killed": Fault(lambda soak: soak.signal_mpirun(signal.SIGKILL)),
    "distgrad run killed": Fault(_kill_command, (-9,)),
    "distgrad run told to stop": Fault(lambda soak: soak.signal_command(signal.SIGTERM), TOLD),
    "checkpoint flipped": Fault(_kill_command, (-9,), lambda soak: soak.damage(soak.flip)),
    "checkpoint cut": Fault(_kill_command, (-9,), lambda soak: soak.damage(soak.cut)),
    "disk full": Fault(lambda soak: soak.fill_disk(), None),
}


def launch(size: int, record: Record, errors: list[str], *words: object) -> subprocess.Popen[str]:
    """A training under `distgrad run`."""
    restarts = ["--max-restarts", "1000000", "--timeout", f"{TIMEOUT:g}", "--start-timeout", f"{STARTING:g}"]
    command = [BIN / "distgrad", "run", "-np", str(size), "--oversubscribe", "--backend", "mpi", *restarts, TRAINING]
    job = start([*command, *map(str, words)], MARK)
    for stream, hear in ((job.stdout, record.hear), (job.stderr, errors.append)):
        threading.Thread(target=_listen, args=(stream, hear), daemon=True).start()
    return job


def _listen(stream: IO[str], hear: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            hear(line)


def signalled(pid: int | None, number: signal.Signals) -> bool:
    """Whether there was such a process, which has the signal now."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def steps_in(folder: Path) -> int:
    """Of the newest checkpoint that is whole."""
    found = CheckpointDirectory(folder, 1).read_newest()
    return found.meta["step"] if found else 0


def unbroken(size: int, steps: int) -> Record:
    """The same training, which nothing happens to."""
    UNBROKEN.mkdir()
    record, errors = Record(), list[str]()
    status = launch(size, record, errors, UNBROKEN, "--steps", steps).wait()
    if status or steps_in(UNBROKEN) != steps:
        raise SystemExit(f"{''.join(errors)}the unbroken training ended with {status}")
    return record


def differences(soak: Soak, whole: Record, steps: int) -> list[str]:
    """In what the training differs from an unbroken one."""
    name = f"step-{steps:010d}.npz"
    differing = soak.record.differing | {n for n, text in whole.told.items() if soak.record.told.get(n, text) != text}
    return [*_unlike(FOLDER / name, UNBROKEN / name), *(f"the line of step {step}" for step in sorted(differing))]


def _unlike(one: Path, other: Path) -> Iterator[str]:
    """What two checkpoints do not have alike, and the values where they are short."""
    if one.read_bytes() == other.read_bytes():
        return
    ours, theirs = checkpoint_file.read(one), checkpoint_file.read(other)
    yield one.name
    for entry in theirs.meta:
        if ours.meta[entry] != theirs.meta[entry]:
            yield f"{entry}: {str(ours.meta[entry])[:SHOWN]}, not {str(theirs.meta[entry])[:SHOWN]}"
    for entry, array in theirs.arrays.items():
        if ours.arrays[entry].tobytes() != array.tobytes():
            yield f"{entry} in {np.count_nonzero(ours.arrays[entry] != array)} of {array.size} places"


def tell(soak: Soak, steps: int, seconds: float, left: list[str], differing: list[str]) -> None:
    print("| fault | times | longest until it was launched again |\n|---|---|---|")
    for name, times in soak.done.items():
        print(f"| {name} | {times} | {soak.longest[name]:.1f} s |")
    record, faults = soak.record, sum(soak.done.values())
    print(f"\n{faults} faults in {seconds / 60:.1f} min, resumed {record.resumed} times")
    print(f"{steps} steps, and {record.again} of them taken again; left behind: {', '.join(left) or 'nothing'}")
    print(f"equal to the unbroken training: {'no: ' + ', '.join(differing[:9]) if differing else 'yes'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=20.0, help="seconds between two faults, on average")
    chosen = parser.parse_args()
    mounts.begin_again(f"mkdir {FOLDER} && mount -t tmpfs -o size={DISK} none {FOLDER}")
    began = time.monotonic()
    soak = Soak(chosen.workers, chosen.seed, chosen.gap, chosen.faults or list(FAULTS))
    soak.run(60 * chosen.minutes)
    steps = soak.stop()
    seconds = time.monotonic() - began
    differing = differences(soak, unbroken(chosen.workers, steps), steps)
    left = [str(one) for one in (*with_environment(MARK), *mounts.left_in_memory([FOLDER, UNBROKEN]))]
    tell(soak, steps, seconds, left, differing)
    sys.exit(bool(left or differing))


if __name__ == "__main__":
    main()
