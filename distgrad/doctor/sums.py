"""A world of every engine that is here, launched as `distgrad run` does, and its sums against the exact answer.

As a program, `python -m distgrad.doctor.sums FILE` is a worker of such a world.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distgrad.connect import installed
from distgrad.doctor.finding import ABSENT, CLOCK, OK, PROBLEM, Failed, Finding, call, telling
from distgrad.errors import DistgradError
from distgrad.launching.selection import found

ENGINES = {
    "mpi": ("MPI", ["--backend", "mpi"]),
    "horovod-gloo": ("Horovod over Gloo", ["--backend", "horovod", "--controller", "gloo"]),
    "horovod-mpi": ("Horovod over MPI", ["--backend", "horovod", "--controller", "mpi"]),
    "tf": ("tf.distribute", ["--backend", "tf"]),
}
SIZES = {"4 KB": 1 << 10, "4 MB": 1 << 20}
TIMES = 10


def examine(size: int) -> Iterator[Finding]:
    """One finding an engine; `size` workers each."""
    for name, (title, options) in ENGINES.items():
        if _present(name):
            yield _examine(title, [*options, "-np", str(size), "--oversubscribe"])
        else:
            yield Finding(f"sums: {title}", ABSENT, "not installed")


def _present(name: str) -> bool:
    if name == "tf":
        return True
    programs = {"mpi": ["mpirun"], "horovod-gloo": ["horovodrun"], "horovod-mpi": ["horovodrun", "mpirun"]}[name]
    package = "mpi4py" if name == "mpi" else "horovod"
    return installed(package) and all(found(program, os.environ) for program in programs)


def _examine(title: str, options: list[str]) -> Finding:
    with tempfile.TemporaryDirectory(prefix="distgrad-doctor-") as folder:
        answer = Path(folder, "answer.json")
        worker = [sys.executable, "-m", "distgrad.doctor.sums", str(answer)]
        command = [sys.executable, "-m", "distgrad", "run", *options, "--start-timeout", f"{CLOCK / 2:g}", *worker]
        try:
            done = call(command, {})
        except Failed as failure:
            return Finding(f"sums: {title}", PROBLEM, str(failure), "see what `distgrad run` prints")
        if done.returncode or not answer.exists():
            return Finding(f"sums: {title}", PROBLEM, telling(done.stderr), "see what `distgrad run` prints")
        return _judge(title, json.loads(answer.read_text()))


def _judge(title: str, answer: dict[str, Any]) -> Finding:
    if answer["wrong"]:
        fix = "do not train with it; report this with what `distgrad env` prints"
        return Finding(f"sums: {title}", PROBLEM, f"wrong: {answer['wrong'][0]}", fix)
    times = ", ".join(f"{name} in {1000 * seconds:.2f} ms" for name, seconds in answer["seconds"].items())
    return Finding(f"sums: {title}", OK, f"exact, {answer['size']} workers; {times}")


def work(file: Path) -> None:
    """Be a worker: compare sums of what each rank can compute with arithmetic; the root writes down the result."""
    import distgrad  # noqa: PLC0415 (the one place that loads TensorFlow)

    with distgrad.connect() as comm:
        wrong = [*_wrong_sums(comm), *_wrong_gradients(comm)]
        answer = {"size": comm.size, "wrong": wrong, "seconds": {name: _time(comm, SIZES[name]) for name in SIZES}}
        texts = comm.exchange(json.dumps(answer["wrong"])).values()
        answer["wrong"] = [one for text in texts for one in json.loads(text)]
        if comm.is_root:
            file.write_text(json.dumps(answer))


def _wrong_sums(comm: Any) -> Iterator[str]:
    """Vectors of integers, which every dtype holds exactly, r + 1 times as much from rank r."""
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    everyone = sum(range(comm.size + 1))
    for dtype in ("float32", "float64", "int32", "int64"):
        for entries in (1, 1000, 100_003):
            own = np.arange(entries) % 1000
            total = comm.sum_over_workers(lambda own=own, dtype=dtype: tf.constant(own * (comm.rank + 1), dtype), ())
            if not np.array_equal(total.numpy(), own * everyone):
                yield f"{entries} entries of {dtype} on rank {comm.rank}"


def _wrong_gradients(comm: Any) -> Iterator[str]:
    """The gradient of Σ w·x is Σ x: over ranks with 0, 1, 2, … rows, in micro-batches of 2."""
    import tensorflow as tf  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    with comm.scope():
        weight = tf.Variable(0.0)
    rows = tf.fill([comm.rank], float(comm.rank + 1))
    sums = distgrad.sum_gradients(lambda row: row * weight, [weight], (rows,), comm=comm, micro_batch_size=2)
    exact = sum(rank * (rank + 1) for rank in range(comm.size))
    found, count = float(sums.gradients[0]), float(sums.weight)
    if (found, count) != (exact, sum(range(comm.size))):
        yield f"a gradient of {found} over {count:g} rows, not {exact}, on rank {comm.rank}"


def _time(comm: Any, entries: int) -> float:
    """Seconds of one float32 sum through a graph, the best of some."""
    import tensorflow as tf  # noqa: PLC0415

    own = tf.ones(entries)
    add = tf.function(lambda: comm.sum_over_workers(lambda: own, ()), autograph=False)
    add()
    best = float("inf")
    for _ in range(TIMES):
        began = time.perf_counter()
        add()
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
    except DistgradError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
