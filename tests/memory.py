"""Peak memory of one step by number of micro-batches: python tests/memory.py

Each row is a process of its own. The model's activations are large (about 50 MB a micro-batch), so that micro-batches
that were kept alive together would show.
"""

import resource
import subprocess
import sys

import rich.console
import rich.table

MICRO_BATCH = 16
COUNTS = (2, 8, 32)


def train(micro_batches: int) -> None:
    """Take three steps and print the peak resident memory in MB."""
    import keras  # noqa: PLC0415 (in the child only)
    import numpy as np  # noqa: PLC0415

    import distgrad  # noqa: PLC0415

    layers = [keras.layers.Conv2D(32, 3, padding="same", activation="relu") for _ in range(6)]
    model = keras.Sequential([keras.Input((64, 64, 1)), *layers, keras.layers.GlobalAveragePooling2D()])
    comm = distgrad.connect("solo")
    step = distgrad.DistributedStep(model, "mse", "adam", comm=comm, micro_batch_size=MICRO_BATCH, log_every=0)
    rows = micro_batches * MICRO_BATCH
    for _ in range(3):
        step(np.ones((rows, 64, 64, 1), "float32"), np.ones((rows, 32), "float32"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(micro_batches: int) -> float:
    """Peak resident memory, in MB, of a new process that takes such steps."""
    command = [sys.executable, __file__, str(micro_batches)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    table = rich.table.Table("micro-batches", "peak memory", "against 2")
    peaks = {count: peak(count) for count in COUNTS}
    for count, megabytes in peaks.items():
        table.add_row(str(count), f"{megabytes:.0f} MB", f"{megabytes / peaks[2]:.3f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    train(int(sys.argv[1])) if len(sys.argv) > 1 else main()
