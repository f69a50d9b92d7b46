"""What a process holds after many uses of distgrad: PYTHONPATH=tests python -m measure.leaks [KIND ...]

KIND: "connect and close", "steps" or "fits". Shown are file descriptors, threads and resident memory of one of two MPI
ranks, after a tenth of the uses and after all.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.table

from support.launching import launch

RANKS = 2
TIMES = {"connect and close": 10_000, "steps": 1_000, "fits": 300}


class Held(NamedTuple):
    """What a process holds: file descriptors, threads (the kernel's count), resident memory in MB."""

    descriptors: int
    threads: int
    memory: float


def held() -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
    return Held(descriptors, threads, pages * os.sysconf("SC_PAGESIZE") / 1e6)


def connect_and_close() -> Callable[[], Any]:
    """Join the job and leave it, and once more alone."""
    import distgrad  # noqa: PLC0415 (in the worker only)

    def use() -> None:
        for backend in ("mpi", "solo"):
            distgrad.connect(backend).close()

    return use


def steps() -> Callable[[], Any]:
    """Make a step of the same model, take it once, and close it."""
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    comm = distgrad.connect("mpi")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x, y = np.ones((8, 3), "float32"), np.ones((8, 2), "float32")

    def use() -> None:
        step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0)
        step(x, y)
        step.close()

    return use


def fits() -> Callable[[], Any]:
    """Call `fit` of the same model."""
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    distgrad.distribute(model, distgrad.connect("mpi"))
    model.compile("sgd", "mse")
    x, y = np.ones((8, 3), "float32"), np.ones((8, 2), "float32")
    return lambda: model.fit(x, y, batch_size=8, verbose=0)


KINDS: dict[str, Callable[[], Callable[[], Any]]] = {
    "connect and close": connect_and_close,
    "steps": steps,
    "fits": fits,
}


def work(kind: str, times: int) -> None:
    """Use distgrad so often, and print what is held after a tenth of it and at the end."""
    use = KINDS[kind]()
    for number in range(1, times + 1):
        use()
        if number in (times // 10, times):
            print(f"held {' '.join(map(str, held()))}\n", end="", flush=True)


def measure(kind: str, times: int) -> list[tuple[Held, Held]]:
    """What each rank holds after a tenth of so many uses, and after all."""
    job = launch("mpi", RANKS, [__file__, "--worker", kind, str(times)], timeout=3600)[0]
    assert job.status == 0, job.err
    found = [line.split()[1:] for line in job.lines("held")]
    assert len(found) == 2 * RANKS, job.out
    values = [Held(int(descriptors), int(threads), float(memory)) for descriptors, threads, memory in found]
    return list(zip(values[:RANKS], values[RANKS:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    table = rich.table.Table("", "times", "descriptors", "threads", "memory", "a use")
    for kind in parser.parse_args().kinds:
        early, late = measure(kind, TIMES[kind])[0]
        grown = (late.memory - early.memory) / (0.9 * TIMES[kind])
        columns = [f"{one} … {other}" for one, other in zip(early[:2], late[:2], strict=True)]
        memory = f"{early.memory:.0f} … {late.memory:.0f} MB"
        table.add_row(kind, f"{TIMES[kind]:,}", *columns, memory, f"{1000 * grown:.1f} kB")
    rich.console.Console().print(table)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", kind, times]:
            work(kind, int(times))
        case _:
            main()
