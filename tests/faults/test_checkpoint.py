"""Checkpoints of real jobs: kills at every system call and in the midst of saves, full disks, a pickle among them."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from support import launching
from support.hostile import Evil
from support.launching import launch, run, start
from support.mounts import needs_mounts, on


@pytest.mark.fault(28)
def test_a_save_killed_at_every_system_call_leaves_a_whole_file(tmp_path: Path) -> None:
    job = run([sys.executable, "-m", "support.killed_saves", tmp_path / "killed"])
    if job.status == os.EX_NOPERM:
        pytest.skip("ptrace is not permitted here")
    assert job.status == 0, job.err
    places = [int(word) for word in job.out.replace(",", "").split() if word.isdigit()]
    assert places[0] > 50
    assert places[0] > places[1] > 0


PROGRAM = """
    import os, sys, distgrad
    comm = distgrad.connect()
    import keras, numpy as np, tensorflow as tf

    keras.utils.set_random_seed(4)
    x, y = np.random.rand(96, 5).astype("float32"), np.random.rand(96, 1).astype("float32")
    with comm.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
    step = distgrad.DistributedStep(model, "mse", keras.optimizers.Adam(0.01), comm=comm, log_every={log_every})
    dataset = comm.shard(tf.data.Dataset.from_tensor_slices((x, y)).shuffle(96, seed=1).batch(12))
    folder = {folder!r}
    checkpoint = distgrad.Checkpoint(folder, comm, keep=2)
    began = checkpoint.resume(step)
"""

TRAIN = """
    import time
    for _ in range(step.epochs, 5):
        for report in step.epoch(dataset):
            checkpoint.save(step)
            time.sleep({pause})
    checkpoint.wait()
    if comm.is_root:
        np.save(folder + ".npy", np.concatenate([np.ravel(v.numpy()) for v in step.variables()]))
        print("began at", began, flush=True)
"""

STOP = """
    import signal
    try:
        for _ in range(step.epochs, 5):
            for report in step.epoch(dataset):
                if report.step == 13 and comm.rank == comm.size - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("at step", step.steps, flush=True)
"""

FILL = """
    def fill():
        try:
            with open(folder + "/filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
        except OSError:
            pass

    steps = step.epoch(dataset)
    next(steps)
    checkpoint.save(step)
    checkpoint.wait()
    fill()
    next(steps)
    checkpoint.save(step)
    checkpoint._wait_for_writer()
    next(steps)
    print("full", sorted(os.listdir(folder)), flush=True)
    os.unlink(folder + "/filler")
    checkpoint.save(step)
    checkpoint.wait()
    print("free", sorted(os.listdir(folder)), flush=True)
    fill()
    next(steps)
    checkpoint.save(step)
    checkpoint.wait()
"""


def program(folder: Path, *parts: str, log_every: int = 0, pause: float = 0) -> list[str]:
    text = "".join(textwrap.dedent(part) for part in (PROGRAM, *parts))
    return launching.program(text.format(folder=str(folder), log_every=log_every, pause=pause))


def train(engine: str, size: int, folder: Path) -> tuple[int, np.ndarray]:
    """The step it began at, and the weights and optimizer state at the end."""
    folder.mkdir(exist_ok=True)
    job = launch(engine, size, program(folder, TRAIN))[0]
    assert job.status == 0, job.err
    return int(job.lines("began at")[0].split()[-1]), np.load(f"{folder}.npy")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return train("mpi", 2, tmp_path_factory.mktemp("unbroken"))[1]


def kill_while_it_saves(folder: Path) -> None:
    """kill -9 for every process of a job that saves each step, once some files are there."""
    folder.mkdir()
    words = ["mpirun", "--oversubscribe", "-np", "2", sys.executable, *program(folder, TRAIN, pause=0.05)]
    job = start(words, {})
    until = time.monotonic() + 90
    while len(list(folder.glob("step-*.npz"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True, check=False)
    for pid in [*map(int, ranks.stdout.split()), job.pid]:
        os.kill(pid, signal.SIGKILL)
    job.communicate()


@pytest.mark.fault(28, 32, 33)
def test_a_killed_job_goes_on_bit_for_bit_and_with_fewer_workers(tmp_path: Path, unbroken: np.ndarray) -> None:
    kill_while_it_saves(tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    began, resumed = train("mpi", 2, tmp_path / "killed")
    assert 1 < began < 40
    np.testing.assert_array_equal(resumed, unbroken)
    began_alone, alone = train("solo", 1, tmp_path / "alone")
    assert began_alone == began
    np.testing.assert_allclose(alone, unbroken, rtol=1e-4, atol=1e-6)


@pytest.mark.fault(32)
def test_a_job_that_is_told_to_stop_goes_on_bit_for_bit(tmp_path: Path, unbroken: np.ndarray) -> None:
    """One worker hears of it; all save the same step."""
    folder = tmp_path / "stopped"
    folder.mkdir()
    job = launch("mpi", 2, program(folder, STOP))[0]
    (step,) = {int(line.split()[-1]) for line in job.lines("at step")}
    assert 13 < step < 16
    assert (job.status, len(job.lines("at step"))) == (85, 2), job.err
    assert job.err.count(f"error[DG064] rank=- step={step}: asked to stop") == 1
    assert [path.name for path in folder.iterdir()] == [f"step-{step:010d}.npz"]
    began, resumed = train("mpi", 2, folder)
    assert began == step
    np.testing.assert_array_equal(resumed, unbroken)


@pytest.mark.fault(27)
@needs_mounts
def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    job = run(on(f"mount -t tmpfs -o size=128k none {tmp_path}", program(tmp_path, FILL)))
    assert job.lines("full") == ["full ['filler', 'step-0000000001.npz']"], job.err
    assert job.lines("free") == ["free ['step-0000000001.npz', 'step-0000000003.npz']"]
    warnings = [line for line in job.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "the checkpoint of step 2 could not be written (No space left on device); training goes on" in warnings[0]
    assert "error[DG051] rank=- step=4" in job.err
    assert job.status == 74


@pytest.mark.fault(30)
@needs_mounts
def test_a_read_only_directory_is_refused_before_the_first_step(tmp_path: Path) -> None:
    mounts = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    job = run(on(mounts, program(tmp_path, TRAIN, log_every=1)))
    assert "error[DG050] rank=- step=-: nothing can be written into checkpoint directory" in job.err
    assert (job.status, job.lines("step")) == (73, [])


@pytest.mark.fault(31)
def test_a_pickle_in_the_place_of_a_checkpoint_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "step-0000000009.npz").write_bytes(pickle.dumps(Evil(tmp_path / "unpickled")))
    job = launch("solo", 1, program(tmp_path, TRAIN, log_every=1))[0]
    assert job.err.count("error[DG053]") == 1, job.err
    assert (job.status, job.lines("step")) == (77, [])
    assert not (tmp_path / "unpickled").exists()
