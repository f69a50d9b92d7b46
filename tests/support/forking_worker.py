"""A worker that trains while children of all kinds are forked from it and end: `forking_worker.py`.

It prints what became of each child. jobs/test_forks.py says what must.
"""

import functools
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import distgrad

T = 20.0  # seconds that workers wait for one another
CHILD = 15.0  # seconds until a child is said to hang
fork = multiprocessing.get_context("fork")


def leave() -> None:
    sys.exit(3)


def fail() -> None:
    raise ValueError("bad sample in a child")


def close(comm: distgrad.Communicator) -> None:
    comm.close()
    os._exit(0)


def shared_bytes() -> int:
    """How much of the memory in which workers sum this process has mapped."""
    ranges = re.findall(
        r"^(\w+)-(\w+) .*/memfd:distgrad \(deleted\)$", Path("/proc/self/maps").read_text(), re.MULTILINE
    )
    return sum(int(stop, 16) - int(start, 16) for start, stop in ranges)


def look_at_shared_memory(of_worker: int) -> None:
    """End with 0 if this process has less of it, or the worker has none."""
    os._exit(0 < of_worker <= shared_bytes())


def sleep() -> None:
    time.sleep(300)


def forked(does: Callable[[], object], signals: tuple[int, ...] = (), pause: float = 0.3) -> str:
    """Fork a process that does something, send it signals, each after a pause, and say how it ended."""
    pid = os.fork()
    if not pid:
        does()
    for number in signals:
        time.sleep(pause)
        os.kill(pid, number)
    end = time.monotonic() + CHILD
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def at_once() -> str:
    """Signal to children that may not have begun to run."""
    ends = {forked(sleep, (signal.SIGTERM,), pause=0.0001 * (number % 5)) for number in range(60)}
    return ", ".join(sorted(ends))


def terminated() -> str:
    child = fork.Process(target=sleep)
    child.start()
    time.sleep(0.3)
    child.terminate()
    child.join(CHILD)
    ended = str(child.exitcode)
    child.kill()
    return ended


def pool() -> str:
    with fork.Pool(2) as workers:  # at its end it terminates them
        return str(sum(workers.map(abs, range(-4, 0))))


def fit_on_rows_of_other_processes(comm: distgrad.Communicator) -> None:
    """Let Keras fork processes that read the data; the targets are 1 if they did."""
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    worker = os.getpid()

    class Rows(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((4, 3), "float32"), np.full((4, 2), os.getpid() != worker, "float32")

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    distgrad.distribute(model, comm)
    model.compile("sgd", "mse")
    losses = model.fit(Rows(workers=2, use_multiprocessing=True), epochs=3, verbose=0).history["loss"]
    print(f"losses {losses}\n", end="", flush=True)


def main() -> None:
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # since Python 3.12
    comm = distgrad.connect(timeout=T)
    import keras  # noqa: PLC0415 (which comes after connect)
    import numpy as np  # noqa: PLC0415

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    step(x, y)
    kinds: dict[str, Callable[[], str]] = {
        "leaves": lambda: forked(leave),
        "fails": lambda: forked(fail),
        "closes": lambda: forked(lambda: close(comm)),
        "shares memory": lambda: forked(functools.partial(look_at_shared_memory, shared_bytes())),
        "SIGTERM": lambda: forked(sleep, (signal.SIGTERM,)),
        "SIGINT": lambda: forked(sleep, (signal.SIGINT, signal.SIGINT)),
        "SIGTERM at once": at_once,
        "terminated": terminated,
        "pool": pool,
    }
    for kind, run in kinds.items():
        if comm.rank == 1:
            print(f"child {kind}: {run()}\n", end="", flush=True)
            time.sleep(0.6)  # in which the others wait, and their watchdogs look
        step(x, y)
    print(f"trained {step.steps}\n", end="", flush=True)
    fit_on_rows_of_other_processes(comm)


if __name__ == "__main__":
    main()
