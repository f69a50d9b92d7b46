"""Looking at processes from outside: which ones there are, by what they were started with, and in what state."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from distgrad.launching.job_folder import JOB_MARK


def with_environment(entries: Mapping[str, str]) -> set[int]:
    """Numbers of the processes that were started with these variables, at whatever remove."""
    wanted = {f"{name}={value}" for name, value in entries.items()}
    processes = Path("/proc").glob("[0-9]*")
    return {int(one.name) for one in processes if wanted <= set(read(one / "environ").split("\0"))}


def state(pid: int) -> str:
    """One letter, as in ps: T for a process that was stopped."""
    return read(Path("/proc", str(pid), "stat")).rpartition(")")[2].strip()[:1]


def left_in_shared_memory() -> set[Path]:
    """Files and folders in /dev/shm that no running process has mapped, and of which none calls itself a part."""
    processes = list(Path("/proc").glob("[0-9]*"))
    marks = {Path(job).name for one in processes for job in re.findall(rf"{JOB_MARK}=([^\0]+)", read(one / "environ"))}
    mapped = {path for one in processes for path in re.findall(r"/dev/shm/\S+", read(one / "maps"))}
    of_jobs = tuple(marks)  # the names of their folders begin with the mark's
    return {
        path for path in Path("/dev/shm").iterdir() if not path.name.startswith(of_jobs) and str(path) not in mapped
    }


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended
        return ""


def wait_until(condition: Callable[[], bool], seconds: float, why_not: Callable[[], object] = str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, why_not()
        time.sleep(0.1)


def workers(mark: Mapping[str, str], script: str) -> dict[int, int]:
    """Process numbers by rank of those marked Python processes that run a script as mpirun's workers."""
    found = {pid: Path("/proc", str(pid)) for pid in with_environment(mark)}
    running = {pid: read(path / "environ") for pid, path in found.items() if script in _words(path)[1:2]}
    ranks = {pid: re.search(r"\0OMPI_COMM_WORLD_RANK=(\d+)\0", environment) for pid, environment in running.items()}
    return {int(rank[1]): pid for pid, rank in ranks.items() if rank}


def mpiruns(mark: Mapping[str, str], script: str) -> list[int]:
    """Numbers of those marked processes that are mpirun, launching a script; oldest first."""
    found = {pid: _words(Path("/proc", str(pid))) for pid in with_environment(mark)}
    return sorted(pid for pid, words in found.items() if Path(words[0]).name == "mpirun" and script in words)


def _words(process: Path) -> list[str]:
    return read(process / "cmdline").split("\0")
