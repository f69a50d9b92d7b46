"""Checkpoints whose checksum holds and that distgrad never wrote: refused in one line, in little memory."""

import copy
import json
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgrad.checkpoint import file as checkpoint_file
from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.file import CheckpointContent
from distgrad.checkpoint.metadata import TrainingState, require_state
from distgrad.errors import HostileCheckpoint
from support.checkpoints import (
    Entry,
    content,
    entries_of,
    header,
    npy,
    random_state,
    seal,
    seal_overlapping,
)

KERNEL = np.arange(12, dtype="float32").reshape(3, 4)
GOOD = content(7, {"dense/kernel": KERNEL, "dense/bias": np.zeros(4, "float32")})
META = "meta.json"
FIRST, SECOND = GOOD.arrays
DEEP = "[" * 10_000 + "]" * 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "step-0000000007.npz"
    checkpoint_file.write(file, GOOD)
    return file


def refused(path: Path) -> str:
    """Why the file is refused; one line that a terminal can show."""
    with pytest.raises(HostileCheckpoint, match="no checkpoint") as caught:
        CheckpointDirectory(path.parent, keep=1).read_newest()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    assert caught.value.status == 77
    return line


# ---- metadata


def changed(keys: str, value: object) -> dict[str, Any]:
    """Good metadata with another value at keys like "random/0/numpy"."""
    meta = copy.deepcopy(GOOD.meta)
    *path, last = [int(key) if key.isdigit() else key for key in keys.split("/")]
    place: Any = meta
    for key in path:
        place = place[key]
    place[last] = value
    return meta


NUMPY = random_state()["numpy"]
PHILOX = np.random.Philox(1).state
CHANGES = {
    "step": ["x", -5, None, 1.5, True, 2**63, 10**3000, [7]],
    "workers": [0, 2, -1, "1", None],
    "versions": [None, 1, {"keras": 3}],
    "position": [None, [], {"epochs": 0}, {"epochs": 0, "passes": 0, "taken": 7, "more": 0}],
    "position/taken": [8, -1, 10**18, "1", True],
    "position/passes": [10**18],
    "position/epochs": [-1, 10**18],
    "fit": [0, [], {}, {"epoch": 0}],
    "fit/epoch": [-1, "0", 2**70],
    "fit/batch": [-1, 10**18, None],
    "fit/logs": [None, {"loss": "x"}, {"loss": None}, [1]],
    "fit/over": [0, None],
    "fit/order": [None, 1, ["x"], [1, -1], [2**70, 1], [None]],
    "variables": [None, [], {}, GOOD.meta["variables"][:1], GOOD.meta["variables"] * 2, GOOD.meta["variables"][::-1]],
    "variables/0": [
        7,
        "",
        "dense/kernel",
        "dense/kernel float32 (4, 3)",
        "dense/kernel float32 (12,)",
        "dense/kernel int32 (3, 4)",
        "dense/kernel float16 (3, 4)",
        "dense/kernel string (3, 4)",
        "dense/kernel \u0665 (3, 4)",
        "other/kernel float32 (3, 4)",
        "dense/kernel\x1b[31m\n float32 (3, 4)",
    ],
    "metrics": [None, ["m float32 (1,)"], "x"],
    "random": [None, [], {}, [random_state()] * 2, [0]],
    "random/0": [{}, [], random_state() | {"more": 1}],
    "random/0/own": [None, [["x"]], [1.5], [None]],
    "random/0/python": [None, [], [3, [700] * 625, None], [3, [-1] * 625, None], [3, ["x"] * 625, None], [2, [], None]],
    "random/0/numpy": [
        None,
        {},
        NUMPY | {"bit_generator": "__doc__"},
        NUMPY | {"bit_generator": ["MT19937"]},
        NUMPY | {"bit_generator": "PCG64"},
        NUMPY | {"state": NUMPY["state"] | {"pos": 10**6}},
        NUMPY | {"state": NUMPY["state"] | {"pos": -10}},
        NUMPY | {"state": NUMPY["state"] | {"key": [1] * 623}},
        NUMPY | {"state": NUMPY["state"] | {"key": [1] * 625}},
        NUMPY | {"state": NUMPY["state"] | {"key": [-1] * 624}},
        NUMPY | {"gauss": "x"},
        json.loads(json.dumps(PHILOX | {"buffer_pos": -7, "gauss": 0.0, "has_gauss": 0}, default=np.ndarray.tolist)),
    ],
    "random/0/keras": [None, 5, [[1]], [[1, 2], [3, 4]], [[1, "x"]], [[2**70, 1]]],
    "random/0/data": [1, ["x"], [[1]], [2**70]],
}
WRONG = [(keys, value) for keys, values in CHANGES.items() for value in values]


@pytest.mark.fault(43)
def test_metadata_that_distgrad_never_writes(path: Path) -> None:
    require_state(GOOD)
    entries = entries_of(path)
    for keys, value in WRONG:
        seal(path, [(META, json.dumps(changed(keys, value)).encode()), *entries[1:]])
        said = refused(path)
        assert "its checksum holds, but" in said, (keys, value)
    for field in TrainingState._fields:
        seal(path, [(META, json.dumps({k: v for k, v in GOOD.meta.items() if k != field}).encode()), *entries[1:]])
        assert "meta.json is" in refused(path)


@pytest.mark.fault(43)
@pytest.mark.parametrize("depth", [33, 300, 600, 900, 960, 10_000])
@pytest.mark.parametrize("field", ["own", "python", "data", "keras"])
def test_metadata_of_any_depth(path: Path, field: str, depth: int) -> None:
    start, end = json.dumps(changed(f"random/0/{field}", "deep")).split('"deep"')
    seal(path, [(META, f"{start}{'[' * depth}{']' * depth}{end}".encode()), *entries_of(path)[1:]])
    assert "its checksum holds, but" in refused(path)


def test_random_numbers_of_other_generators_are_restored() -> None:
    for generator in (np.random.Philox(1), np.random.PCG64(2), np.random.SFC64(3), np.random.PCG64DXSM(4)):
        state = json.loads(json.dumps(generator.state, default=np.ndarray.tolist))
        require_state(CheckpointContent(GOOD.arrays, changed("random/0/numpy", state | {"gauss": 0.0, "has_gauss": 0})))
    require_state(CheckpointContent(GOOD.arrays, changed("random/0", None)))


# ---- archives


def replaced(entries: list[Entry], name: str, data: bytes) -> list[Entry]:
    return [(one, data if one == f"{name}.npy" else old) for one, old in entries]


ARCHIVES: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "duplicate array": lambda entries: [*entries, entries[1]],
    "duplicate metadata": lambda entries: [*entries, entries[0]],
    "array missing": lambda entries: entries[:-1],
    "all arrays missing": lambda entries: entries[:1],
    "array too many": lambda entries: [*entries, ("variables/00009/x.npy", npy(KERNEL))],
    "arrays exchanged": lambda entries: [entries[0], (f"{SECOND}.npy", entries[1][1]), (f"{FIRST}.npy", entries[2][1])],
    "no metadata": lambda entries: entries[1:],
    "no entries": lambda entries: entries[:0],
    "metadata null": lambda entries: [(META, b"null"), *entries[1:]],
    "metadata a list": lambda entries: [(META, b"[]"), *entries[1:]],
    "metadata cut": lambda entries: [(META, entries[0][1][:-5]), *entries[1:]],
    "metadata deep": lambda entries: [(META, DEEP.encode()), *entries[1:]],
    "metadata no text": lambda entries: [(META, b"\xff\xfe\x00"), *entries[1:]],
    "metadata with a long number": lambda entries: [(META, b'{"step": ' + b"9" * 100_000 + b"}"), *entries[1:]],
    "shape": lambda entries: replaced(entries, FIRST, npy(KERNEL.T.copy())),
    "dtype": lambda entries: replaced(entries, FIRST, npy(KERNEL.view("int32"))),
    "byte order": lambda entries: replaced(entries, FIRST, npy(KERNEL.astype(">f4"))),
    "negative shape": lambda entries: replaced(entries, FIRST, header((-3, -4)) + KERNEL.tobytes()),
    "huge shape of nothing": lambda entries: replaced(entries, FIRST, header((10**13,), "|S0")),
    "text": lambda entries: replaced(entries, FIRST, npy(KERNEL.astype("U4"))),
    "too many bytes": lambda entries: replaced(entries, FIRST, npy(KERNEL) + b"more"),
    "header that is none": lambda entries: replaced(entries, FIRST, b"\x93NUMPY\x01\x00\x08\x00((((((((" + bytes(99)),
    "header of 4 GB": lambda entries: replaced(entries, FIRST, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "name with control characters": lambda entries: [*entries, ("\x1b[31m\n.exe", b"x")],
}


@pytest.mark.fault(43)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_distgrad_never_writes(path: Path) -> None:
    entries = entries_of(path)
    for name, change in ARCHIVES.items():
        seal(path, change(entries))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of odd headers
            assert "its checksum holds, but" in refused(path), name


def test_the_order_of_entries_does_not_matter(path: Path) -> None:
    entries = entries_of(path)
    seal(path, entries[::-1])
    found = CheckpointDirectory(path.parent, keep=1).read_newest()
    assert found is not None
    for name, array in GOOD.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.fault(43)
@pytest.mark.parametrize("kind", ["overlapping", "compressed", "claimed", "many names"])
def test_reading_takes_no_more_memory_than_the_file_has_bytes(path: Path, kind: str) -> None:
    entries, megabytes = entries_of(path), bytes(4_000_000)
    if kind == "overlapping":
        seal_overlapping(path, json.dumps(GOOD.meta), 100, megabytes)
    elif kind == "compressed":
        seal(path, [(META, b'{"a": "' + 10 * megabytes + b'"}'), *entries[1:]], zipfile.ZIP_DEFLATED)
    elif kind == "claimed":
        seal(path, [*entries, ("a.npy", header((10**10,), "|u1") + megabytes)])
    else:
        seal(path, [*entries, *((f"variables/{n:05d}/{n}.npy", npy(KERNEL)) for n in range(2, 1500))])
    size = path.stat().st_size
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000 + 5 * size * (kind == "many names"), (peak, size)  # an entry takes 1 kB until it is closed


def test_a_line_says_which_value_it_is(path: Path) -> None:
    seal(path, [(META, json.dumps(changed("step", "\x1b[31mx\ny" * 100)).encode()), *entries_of(path)[1:]])
    said = "step-0000000007.npz is no checkpoint: its checksum holds, but step is '\\x1b[31mx\\ny"
    assert said in refused(path)
