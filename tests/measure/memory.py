"""Peak memory of steps: PYTHONPATH=tests python -m measure.memory

First by number of micro-batches, alone: the activations are large (about 50 MB a micro-batch), so that micro-batches
that were kept alive together would show. Then what two MPI ranks need beyond the same steps without communication, in
gradient vectors: the weights are large. Memory that ranks share counts for each of them in equal parts. Each figure
comes from processes of its own.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import rich.console
import rich.table

from support.launching import CLEAN, launch

MICRO_BATCH = 16
COUNTS = (2, 8, 32)
UNITS = 6000
VECTOR = 4 * UNITS * UNITS  # bytes


def train(micro_batches: int) -> None:
    """Take two steps and print the peak resident memory in MB."""
    import keras  # noqa: PLC0415 (in the child only)
    import numpy as np  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    layers = [keras.layers.Conv2D(32, 3, padding="same", activation="relu") for _ in range(6)]
    model = keras.Sequential([keras.Input((64, 64, 1)), *layers, keras.layers.GlobalAveragePooling2D()])
    comm = distgrad.connect("solo")
    step = distgrad.DistributedStep(model, "mse", "adam", comm=comm, micro_batch_size=MICRO_BATCH, log_every=0)
    rows = micro_batches * MICRO_BATCH
    for _ in range(2):
        step(np.ones((rows, 64, 64, 1), "float32"), np.ones((rows, 32), "float32"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def train_wide(backend: str, micro_batches: int) -> None:
    """Take five steps on each rank, together or each alone, and print the peak memory in bytes."""
    import keras  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    job = distgrad.connect("mpi")
    model = keras.Sequential([keras.Input((UNITS,)), keras.layers.Dense(UNITS, use_bias=False)])
    comm = job if backend == "mpi" else distgrad.connect("solo")
    step = distgrad.DistributedStep(model, "mse", "adam", comm=comm, micro_batch_size=4, log_every=0)
    data = np.ones((4 * micro_batches, UNITS), "float32")
    for _ in range(5):
        step(data, data)
    job.barrier()
    shared = "".join(Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text())
    resident, proportional = (1024 * int(_field(name, shared)) for name in ("RssShmem", "Pss_Shmem"))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak {peak_bytes - resident + proportional}\n", end="", flush=True)
    job.close()


def _field(name: str, text: str) -> str:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def peak(micro_batches: int) -> float:
    """Peak resident memory, in MB, of a new process that takes such steps."""
    command = [sys.executable, __file__, str(micro_batches)]
    # What is freed goes back to the system at once: the peak is what was alive, not what the allocator kept.
    env = os.environ | {"PYTHONPATH": CLEAN["PYTHONPATH"], "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def extra(micro_batches: int) -> float:
    """How many gradient vectors communication costs a rank at its peak; the larger rank's."""
    peaks = []
    for backend in ("mpi", "solo"):
        job = launch("mpi", 2, [__file__, backend, str(micro_batches)])[0]
        assert job.status == 0, job.err
        peaks.append(max(int(line.split()[1]) for line in job.lines("peak")))
    return (peaks[0] - peaks[1]) / VECTOR


def main() -> None:
    table = rich.table.Table("micro-batches", "peak memory", "against 2")
    peaks = {count: peak(count) for count in COUNTS}
    for count, megabytes in peaks.items():
        table.add_row(str(count), f"{megabytes:.0f} MB", f"{megabytes / peaks[2]:.3f}")
    rich.console.Console().print(table)
    table = rich.table.Table("micro-batches", "extra peak memory of 2 MPI ranks, vectors a rank")
    for count in COUNTS:
        table.add_row(str(count), f"{extra(count):.2f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case [count]:
            train(int(count))
        case [engine, count]:
            train_wide(engine, int(count))
