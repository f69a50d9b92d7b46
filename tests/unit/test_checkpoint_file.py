"""A checkpoint's file: written, damaged by a bit, cut, and made by somebody hostile."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distgrad.checkpoint import file as checkpoint_file
from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.file import Damaged, Hostile
from distgrad.errors import HostileCheckpoint
from support.checkpoints import content, header, seal
from support.hostile import Evil

PLACES = 200

CONTENT = content(7, {f"dense_{i}/kernel": np.arange(40.0 * i).reshape(-1, 8) for i in range(6)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "step-0000000007.npz"
    checkpoint_file.write(file, CONTENT)
    return file


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


@pytest.mark.fault(31)
def test_nothing_hostile_is_loaded(path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    files: dict[str, Callable[[], object]] = {
        **{f"pickle {n}": lambda n=n: path.write_bytes(pickle.dumps(Evil(mark), n)) for n in range(6)},
        "cut pickle": lambda: path.write_bytes(pickle.dumps(Evil(mark))[:-9]),
        "npz of objects": lambda: np.savez(path, a=np.array([Evil(mark)], dtype=object)),
        "sealed objects": lambda: seal(path, [("a.npy", objects.read_bytes())]),
        "larger than its bytes": lambda: seal(path, [("a.npy", header((10**13,)))]),
        "compressed": lambda: seal(path, [("a.npy", bytes(10**6))], zipfile.ZIP_DEFLATED),
        "no array": lambda: seal(path, [("../data.pkl", b"x")]),
    }
    for name, make in files.items():
        make()
        with pytest.raises(Hostile):
            checkpoint_file.read(path)
        with pytest.raises(HostileCheckpoint, match="no checkpoint"):
            CheckpointDirectory(tmp_path, keep=1).read_newest()
        assert not mark.exists(), name


BESIDE = [
    "notes.tmp",
    ".tmp",
    "probe.1.tmp",
    "probe.77.tmp",
    "best.npz",
    "step-1.npz",
    "step-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.npz",
    "step-0000000001.npz.bak",
    "step-0000000001.npz.tmp",
    "step-0000000001.npz.77.tmp",
    "step-0000000001.npz.77-0123456789abcdef.tmp.bak",
    "my-step-0000000001.npz.77-0123456789abcdef.tmp",
    "step-1.npz.77-0123456789abcdef.tmp",
    "step-0000000001.npz.77-0123456789ABCDEF.tmp",
    "step-0000000001.npz.x-0123456789abcdef.tmp",
    "step-00000000001.npz",
]


@pytest.mark.fault(42)
def test_files_beside_the_checkpoints_stay(tmp_path: Path) -> None:
    for name in BESIDE:
        (tmp_path / name).write_text(name)
    (tmp_path / "step-0000000002.npz").mkdir()
    (tmp_path / "step-0000000003.npz.77-0123456789abcdef.tmp").mkdir()
    (tmp_path / "step-0000000004.npz.77-0123456789abcdef.tmp").symlink_to(tmp_path / "notes.tmp")
    before = {path.name for path in tmp_path.iterdir()}
    directory = CheckpointDirectory(tmp_path, keep=1)
    directory.prepare()
    for step in (8, 9):
        directory.write(step, content(step, {"a": np.zeros(3)}))
    assert {path.name for path in tmp_path.iterdir()} == before | {"step-0000000009.npz"}
    for name in BESIDE:
        assert (tmp_path / name).read_text() == name
    found = directory.read_newest()
    assert found is not None
    assert found.meta["step"] == 9


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Even if it had the number of this one, as processes of containers do; but not what this one is writing."""
    left = tmp_path / f"step-0000000007.npz.{os.getpid()}-0123456789abcdef.tmp"
    own = checkpoint_file.temporary_path(tmp_path / "step-0000000008.npz")
    for path in (left, own):
        path.write_bytes(b"half")
    CheckpointDirectory(tmp_path, keep=1).prepare()
    assert list(tmp_path.iterdir()) == [own]


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Hostile, match="no regular file"):
        checkpoint_file.read(path)
