"""Checkpoints against real faults: flipped bits, kills at every system call, full disks, hostile files."""

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distgrad.checkpoint import file as checkpoint_file
from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.file import CheckpointContent, Damaged, Hostile
from distgrad.errors import HostileCheckpoint
from support import launching
from support.launching import launch, run, start
from support.mounts import needs_mounts, on

PLACES = 200
CONTENT = CheckpointContent(
    {f"variables/{i}/kernel": np.arange(40.0 * i).reshape(-1, 8) for i in range(6)}, {"step": 7}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "step-0000000007.npz"
    checkpoint_file.write(file, CONTENT)
    return file


# ---- damaged


def test_what_is_written_is_read_and_numpy_can_read_it(path: Path) -> None:
    found = checkpoint_file.read(path)
    assert found.meta == CONTENT.meta
    for name, array in CONTENT.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        np.testing.assert_array_equal(np.load(path)[name], array)
    before = path.read_bytes()
    checkpoint_file.write(path, CONTENT)
    assert path.read_bytes() == before


@pytest.mark.fault(29)
def test_one_flipped_bit_anywhere_is_found(path: Path) -> None:
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    ends = [*range(40), *range(len(whole) - 100, len(whole))]  # the first header, the seal
    places = [*ends, *rng.choice(len(whole), PLACES, replace=False)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            checkpoint_file.read(path)


@pytest.mark.fault(29)
def test_a_file_cut_anywhere_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, *np.random.default_rng(2).choice(len(whole), PLACES, replace=False)]:
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            checkpoint_file.read(path)


def test_a_damaged_file_is_not_the_last_complete_one_until_it_is_written_again(path: Path) -> None:
    kept = CheckpointDirectory(path.parent, keep=3)
    kept.write(9, CONTENT)
    newest = path.with_name("step-0000000009.npz")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert kept.read_newest() is not None
    assert kept.undamaged() == [path]
    kept.write(9, CONTENT)
    assert kept.undamaged() == [newest, path]


@pytest.mark.fault(28)
def test_a_save_killed_at_every_system_call_leaves_a_whole_file(tmp_path: Path) -> None:
    job = run([sys.executable, "-m", "support.killed_saves", tmp_path / "killed"])
    if job.status == os.EX_NOPERM:
        pytest.skip("ptrace is not permitted here")
    assert job.status == 0, job.err
    places = [int(word) for word in job.out.replace(",", "").split() if word.isdigit()]
    assert places[0] > 50
    assert places[0] > places[1] > 0


# ---- hostile


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def sealed(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """A file with a checksum that holds, made by somebody who knows how."""
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w", method) as packed:
            packed.writestr(name, data)
            packed.comment = checkpoint_file.SEAL + b"0" * checkpoint_file.DIGEST
        checkpoint_file._seal(file)


def header(shape: tuple[int, ...]) -> bytes:
    """An array's description without the array."""
    described = io.BytesIO()
    np.lib.format.write_array_header_1_0(described, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return described.getvalue()


@pytest.mark.fault(31)
def test_nothing_hostile_is_loaded(path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    files: dict[str, Callable[[], object]] = {
        **{f"pickle {n}": lambda n=n: path.write_bytes(pickle.dumps(Evil(mark), n)) for n in range(6)},
        "cut pickle": lambda: path.write_bytes(pickle.dumps(Evil(mark))[:-9]),
        "npz of objects": lambda: np.savez(path, a=np.array([Evil(mark)], dtype=object)),
        "sealed objects": lambda: sealed(path, "a.npy", objects.read_bytes()),
        "larger than its bytes": lambda: sealed(path, "a.npy", header((10**13,))),
        "compressed": lambda: sealed(path, "a.npy", bytes(10**6), zipfile.ZIP_DEFLATED),
        "no array": lambda: sealed(path, "../data.pkl", b"x"),
    }
    for name, make in files.items():
        make()
        with pytest.raises(Hostile):
            checkpoint_file.read(path)
        with pytest.raises(HostileCheckpoint, match="no checkpoint"):
            CheckpointDirectory(tmp_path, keep=1).read_newest()
        assert not mark.exists(), name


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Hostile, match="no regular file"):
        checkpoint_file.read(path)


# ---- in real jobs

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
