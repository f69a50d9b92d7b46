"""The sharded update in whole jobs: on two hosts, and resumed by another number of workers."""

from pathlib import Path

import pytest

from support.hosts import Hosts
from support.launching import launch, program
from support.worlds import settings, show, suite

# Trains on the same 12 rows a step, whatever the number of workers, and prints what comes of it.
RESUMED = """
    import sys
    import keras
    import numpy as np
    import distgrad

    folder, steps, wish = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sharded"
    comm = distgrad.connect()
    keras.utils.set_random_seed(3)
    hidden = keras.layers.Dense(40, "tanh"), keras.layers.Dense(50, kernel_constraint="max_norm")
    model = keras.Sequential([keras.Input((5,)), *hidden, keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    step = distgrad.DistributedStep(model, "mse", optimizer, comm=comm, log_every=0, shard_update=wish)
    checkpoint = distgrad.Checkpoint(folder, comm) if folder != "-" else None
    if checkpoint:
        checkpoint.resume(step)
    while step.steps < steps:
        rng = np.random.default_rng(step.steps)
        x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
        part = slice(comm.rank * 12 // comm.size, (comm.rank + 1) * 12 // comm.size)
        step(x[part].astype("float32"), y[part].astype("float32"))
    if checkpoint:
        checkpoint.save(step)
        checkpoint.wait()
    step.gather_optimizer()
    if comm.is_root:
        values = [np.ravel(v.numpy()) for v in [*model.variables, *optimizer.variables]]
        print("state", *np.concatenate(values).tolist(), flush=True)
    comm.close()
"""


def trained(workers: int, folder: Path | str, steps: int, wish: str) -> list[float]:
    (job,) = launch("mpi", workers, [*program(RESUMED), str(folder), str(steps), wish])
    assert job.status == 0, job.err[-3000:]
    (line,) = job.lines("state")
    return [float(word) for word in line.split()[1:]]


@pytest.mark.thorough
def test_a_checkpoint_is_resumed_by_other_numbers_of_workers(tmp_path: Path) -> None:
    parts = [(2, 4, "sharded"), (3, 8, "sharded"), (1, 10, "whole")]
    *_, found = [trained(workers, tmp_path, steps, wish) for workers, steps, wish in parts]
    assert found == pytest.approx(trained(1, "-", 10, "whole"), rel=1e-5, abs=1e-6)


@pytest.mark.thorough
def test_two_workers_on_each_of_two_hosts(hosts: Hosts, subtests: pytest.Subtests, tmp_path: Path) -> None:
    job = hosts.run(2, [*suite("between_hosts"), "-k", "same_bits"], **settings(4, tmp_path))
    show(subtests, 4, tmp_path, [job])
