"""A job of every engine that is installed, whose sums are compared with the exact answer.

`python -m distgrad.doctor.sums FILE` is a worker of such a job.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distgrad.doctor.finding import ABSENT, OK, PROBLEM, Finding
from distgrad.doctor.processes import TIME_LIMIT, ProcessFailed, error_line, run_program
from distgrad.errors import DistgradError
from distgrad.launching.selection import missing_part

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator


class EngineJob(NamedTuple):
    """A job that is launched with `distgrad run`.

    Attributes:
        title: its name in the findings.
        options: the options of `distgrad run` that select the engine.
        package, programs: the Python package and the launcher's programs that it needs.
    """

    title: str
    options: tuple[str, ...]
    package: str | None
    programs: tuple[str, ...]


JOBS = (
    EngineJob("MPI", ("--backend", "mpi"), "mpi4py", ("mpirun",)),
    EngineJob("Horovod over Gloo", ("--backend", "horovod", "--controller", "gloo"), "horovod", ("horovodrun",)),
    EngineJob("Horovod over MPI", ("--backend", "horovod", "--controller", "mpi"), "horovod", ("horovodrun", "mpirun")),
    EngineJob("tf.distribute", ("--backend", "tf"), None, ()),
)
TIMED_SIZES = {"4 KB": 1 << 10, "4 MB": 1 << 20}  # entries of float32
TIMED_SUMS = 10


def examine(size: int) -> Iterator[Finding]:
    """Launch a job of `size` workers on each engine, and yield one finding for each."""
    for job in JOBS:
        if missing_part(job.package, job.programs, os.environ) is None:
            yield _examine_job(job, size)
        else:
            yield Finding(f"sums: {job.title}", ABSENT, "not installed")


def _examine_job(job: EngineJob, size: int) -> Finding:
    check = f"sums: {job.title}"
    with tempfile.TemporaryDirectory(prefix="distgrad-doctor-") as folder:
        file = Path(folder, "answer.json")
        options = [*job.options, "-np", str(size), "--oversubscribe", "--start-timeout", f"{TIME_LIMIT / 2:g}"]
        worker = [sys.executable, "-m", "distgrad.doctor.sums", str(file)]
        try:
            done = run_program([sys.executable, "-m", "distgrad", "run", *options, *worker], {})
        except ProcessFailed as failure:
            return Finding(check, PROBLEM, str(failure), "see what `distgrad run` prints")
        if done.returncode or not file.exists():
            return Finding(check, PROBLEM, error_line(done.stderr), "see what `distgrad run` prints")
        return _finding(check, json.loads(file.read_text()))


def _finding(check: str, answer: dict[str, Any]) -> Finding:
    if answer["wrong"]:
        fix = "do not train with it; report this with what `distgrad env` prints"
        return Finding(check, PROBLEM, f"wrong: {answer['wrong'][0]}", fix)
    times = ", ".join(f"{name} in {1000 * seconds:.2f} ms" for name, seconds in answer["seconds"].items())
    return Finding(check, OK, f"exact, {answer['size']} workers; {times}")


def work(file: Path) -> None:
    """Be a worker of a job. The root writes the answer into `file`.

    The answer is a JSON object: `size`, `wrong` (a sentence for each wrong sum on any worker) and `seconds` (of a sum,
    by size).
    """
    import distgrad  # noqa: PLC0415 (it loads TensorFlow, here in a worker only)

    with distgrad.connect() as comm:
        wrong = [*_wrong_sums(comm), *_wrong_gradients(comm)]
        seconds = {name: _fastest_sum(comm, entries) for name, entries in TIMED_SIZES.items()}
        texts = comm.exchange(json.dumps(wrong)).values()
        everywhere = [sentence for text in texts for sentence in json.loads(text)]
        if comm.is_root:
            file.write_text(json.dumps({"size": comm.size, "wrong": everywhere, "seconds": seconds}))


def _wrong_sums(comm: "Communicator") -> Iterator[str]:
    """Sum vectors of integers, which every dtype holds exactly, r + 1 times as much from rank r."""
    import numpy as np  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    factors = sum(range(comm.size + 1))
    for dtype in ("float32", "float64", "int32", "int64"):
        for entries in (1, 1000, 100_003):
            vector = np.arange(entries) % 1000
            scaled = tf.constant(vector * (comm.rank + 1), dtype)
            total = comm.sum_over_workers(lambda scaled=scaled: scaled, ())
            if not np.array_equal(total.numpy(), vector * factors):
                yield f"{entries} entries of {dtype} on rank {comm.rank}"


def _wrong_gradients(comm: "Communicator") -> Iterator[str]:
    """Compare the gradient of Σ w·x with Σ x, over ranks with 0, 1, 2, … rows in micro-batches of 2."""
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


def _fastest_sum(comm: "Communicator", entries: int) -> float:
    """Return the seconds of one float32 sum in a graph, the fastest of several."""
    import tensorflow as tf  # noqa: PLC0415

    vector = tf.ones(entries)
    add = tf.function(lambda: comm.sum_over_workers(lambda: vector, ()), autograph=False)
    add()
    fastest = float("inf")
    for _ in range(TIMED_SUMS):
        began = time.perf_counter()
        add()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
    except DistgradError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
