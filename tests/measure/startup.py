"""Seconds from a launch to the end of the first step, and what a world adds to them.

    PYTHONPATH=tests python -m measure.startup

Two MPI ranks, and two processes that know nothing of each other: both pairs share the cores in the same way, import
TensorFlow and trace the same small model. They alternate. A pair's time is its slower process's. Waiting for the other
rank counts for the event in which it happens, so that what a world costs is said by the last two lines alone.
"""

import functools
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from support.launching import Job, finish, launch, start

TIMES = 7  # pairs of each kind
RANKS = 2
EVENTS = ("launch", "import", "connect", "build", "agreement", "broadcast", "tracing, step")
TOTAL, FORMATION = "all of it", "all but import and tracing"


class Clock:
    """Seconds by event."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(EVENTS, 0.0)

    def timed(self, event: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """Make every call of a function count for this event."""

        @functools.wraps(act)
        def act_timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = act(*args, **options)
            self.seconds[event] += time.perf_counter() - began
            return result

        return act_timed


def train(backend: str, launched: float) -> None:
    """Take one step and print how many seconds each event took since the launcher was called, a line each."""
    clock = Clock()
    seconds = clock.seconds
    seconds["launch"] = time.time() - launched
    clock.timed("import", importlib.import_module)("distgrad.step")  # and with it TensorFlow
    comm = clock.timed("connect", _connect)(backend)
    first_step = clock.timed("build", _build)(comm, clock)
    clock.timed("tracing, step", first_step)()
    seconds["tracing, step"] -= seconds["agreement"] + seconds["broadcast"]
    total = time.time() - launched
    _say(seconds | {FORMATION: total - seconds["import"] - seconds["tracing, step"], TOTAL: total})


def _connect(backend: str) -> Any:
    import distgrad  # noqa: PLC0415 (in the child only)

    return distgrad.connect(backend)


def _build(comm: Any, clock: Clock) -> Callable[[], Any]:
    """A small model's first step; what it asks of the other ranks is timed by itself."""
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from distgrad import DistributedStep  # noqa: PLC0415
    from distgrad.collectives import agreement  # noqa: PLC0415

    for name in ("require_same_variables", "require_same_settings"):
        setattr(agreement, name, clock.timed("agreement", getattr(agreement, name)))
    comm.broadcast = clock.timed("broadcast", comm.broadcast)
    hidden = [keras.layers.Dense(128, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    step = DistributedStep(model, "mse", "adam", comm=comm, micro_batch_size=32, log_every=0)
    x, y = np.ones((128, 784), "float32"), np.ones((128, 10), "float32")
    return lambda: step(x, y).loss


def _say(seconds: dict[str, float]) -> None:
    """All in one write, which mpirun passes on as it is."""
    print("".join(f"seconds {value} {event}\n" for event, value in seconds.items()), end="", flush=True)


def together() -> dict[str, float]:
    """Seconds by event of two MPI ranks, each event's slower one."""
    return _slowest(launch("mpi", RANKS, [__file__, "mpi", str(time.time())]))


def apart() -> dict[str, float]:
    """The same of two processes that are alone."""
    processes = [start([sys.executable, __file__, "solo", str(time.time())], {}) for _ in range(RANKS)]
    return _slowest([finish(process, 120) for process in processes])


def _slowest(jobs: Sequence[Job]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for job in jobs:
        assert job.status == 0, job.err
        for line in job.lines("seconds "):
            _, value, event = line.split(" ", 2)
            seconds[event] = max(seconds.get(event, 0.0), float(value))
    return seconds


def main() -> None:
    pairs = [(together(), apart()) for _ in range(TIMES)]
    table = rich.table.Table("seconds", "MPI ranks", "alone", "MPI adds", "from … to")
    for event in (*EVENTS, FORMATION, TOTAL):
        worlds, alone = ([times[event] for times in column] for column in zip(*pairs, strict=True))
        added = [a - b for a, b in zip(worlds, alone, strict=True)]
        medians = [f"{statistics.median(values):.2f}" for values in (worlds, alone, added)]
        table.add_row(event, *medians, f"{min(added):.2f} … {max(added):.2f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case [backend, launched]:
            train(backend, float(launched))
