"""The compiled core: it means the same as Python by what they share, and checks what it is given."""

import ctypes
import enum
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distgrad import connect, native
from distgrad.collectives.vectors import Division
from distgrad.collectives.window import Seat, SparseVariable, Window
from distgrad.errors import EngineMissing
from distgrad.native import layout


def core() -> ctypes.CDLL:
    """The core as it was built, loaded anew."""
    native.operations()
    return ctypes.CDLL(native._library())


def test_the_core_has_the_layouts_that_python_expects() -> None:
    layout.require_same(core())
    assert dict(layout._entries(core())) == layout.expected()


def test_a_field_at_another_offset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first, waiting, between_hosts, *others = layout.StatusPage.__members__
    swapped = enum.IntEnum("StatusPage", [first, between_hosts, waiting, *others], start=0)
    monkeypatch.setattr(layout, "STRUCTURES", (swapped, *layout.STRUCTURES[1:]))
    with pytest.raises(EngineMissing, match=r"StatusPage\.between_hosts is 16 in the core and 8 in .* again with pip"):
        layout.require_same(core())


def test_a_structure_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = enum.IntEnum("AddedSums", [*layout.AddedSums.__members__, "LARGEST"], start=0)
    monkeypatch.setattr(layout, "STRUCTURES", (*layout.STRUCTURES[:2], longer, layout.STRUCTURES[3]))
    with pytest.raises(EngineMissing, match="AddedSums is 24 in the core and 32 in Python"):
        layout.require_same(core())


def test_another_number_of_an_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    renumbered = enum.IntEnum(
        "Event",
        {name: 9 if name == "VOTE" else number for name, number in layout.Event.__members__.items()},
    )
    monkeypatch.setattr(layout, "Event", renumbered)
    with pytest.raises(EngineMissing, match=r"Event\.VOTE is 3 in the core and 9 in Python"):
        layout.require_same(core())


def test_what_only_the_core_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "STRUCTURES", layout.STRUCTURES[1:])
    with pytest.raises(EngineMissing, match="StatusPage is 64 in the core and None in Python"):
        layout.require_same(core())


def test_a_core_from_before_it_told_its_layout_is_refused() -> None:
    with pytest.raises(EngineMissing, match="of another version than its Python code"):
        layout.require_same(ctypes.CDLL(None))  # the program itself, which has no such function


def test_layouts_are_compared_when_the_core_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "STRUCTURES", layout.STRUCTURES[1:])
    native.operations.cache_clear()
    try:
        with pytest.raises(EngineMissing):
            native.operations()
    finally:
        monkeypatch.undo()
        native.operations.cache_clear()
        native.operations()


def test_every_source_and_header_is_known_to_the_build() -> None:
    folder = Path(native.__file__).parent
    project = (folder.parents[1] / "pyproject.toml").read_text()
    files = {path.name for pattern in ("*.cpp", "*.h") for path in folder.glob(pattern)}
    assert {name for name in files if f'"distgrad/native/{name}"' not in project} == set()


# ---- what operations are given


def refused(message: str, run: Callable[[], Any]) -> None:
    """It fails, and says so."""
    with pytest.raises(tf.errors.AbortedError, match=message):
        run()


def test_gradients_are_checked_before_an_entry_is_written() -> None:
    """The second of two is wrong; the first one is not added either."""
    with connect("solo") as comm:
        window = comm.window
        window.reserve(64, tf.float32)
        places = {"variables": ["'a'", "'b'"], "starts": [0, 16], "stops": [16, 32], "sizes": [6, 6]}

        def add(first: bool, *sizes: int, **changed: Any) -> None:
            window.run("add", first, True, [tf.ones(size) for size in sizes], **places | changed, describes=0)

        def placed() -> list[float]:
            return summed(window, 32).numpy().tolist()

        add(True, 6, 6)
        before = placed()
        assert before == ([1.0] * 6 + [0.0] * 10) * 2
        for size in (5, 7, 16, 1 << 22):
            refused(
                rf"DG024\]: the gradient of variable 'b' has {size} entries instead of 6",
                lambda size=size: add(False, 6, size),
            )
        refused("variable 'b' has no place", lambda: add(False, 6, 6, stops=[16, 1 << 40]))
        refused("variable 'a' has no place", lambda: add(False, 6, 6, starts=[-16, 16]))
        assert placed() == before


@pytest.mark.parametrize("row", [3, -1, (1 << 60) - 1, 1 << 61, (1 << 63) - 1, -(1 << 63)])
@pytest.mark.parametrize("collects", [True, False])
def test_rows_are_checked_before_an_entry_is_written(row: int, collects: bool) -> None:
    with connect("solo") as comm:
        window = comm.window
        table = window.sparse_variable("'t'", tf.TensorShape([3, 2]))
        place = {"variables": ["'t'"], "starts": [0], "stops": [16], "sizes": [6], "height": 3}

        def add(first: bool, values: tf.Tensor, rows: list[int]) -> None:
            attributes = {"variable": table.address} if collects else place
            operation = "collect_rows" if collects else "add_rows"
            window.run(operation, first, True, values, tf.constant(rows, tf.int64), **attributes, describes=0)

        add(True, tf.ones((2, 2)), [0, 2])
        refused(
            rf"variable 't' is of row {row}, and the variable's are 0 to 2",
            lambda: add(False, tf.ones((2, 2)), [1, row]),
        )
        refused("variable 't' has 2 values for 15000 rows of 2", lambda: add(False, tf.ones((1, 2)), [0] * 15_000))
        refused("variable 't' has 6 values for 2 rows of 2", lambda: add(False, tf.ones((2, 3)), [0, 1]))
        refused("dtype", lambda: add(False, tf.ones((1, 2), tf.float64), [1]))
        total = summed(window, 0 if collects else 16, [table] if collects else [])
        values = total[1] if collects else total
        assert values.numpy().ravel()[:6].tolist() == ([1, 1, 1, 1] if collects else [1, 1, 0, 0, 1, 1])


def summed(window: Window, placed: int, tables: Sequence[SparseVariable] = ()) -> Any:
    """What is placed; with tables, that and the rows of the first one."""
    found = window.run(
        "sum",
        True,
        tf.ones(1, tf.float64),
        [tf.zeros(0)],
        placed=placed,
        divided=0,
        described=0,
        compression=0,
        borrow=0,
        starts=[],
        stops=[],
        sparse=[table.address for table in tables],
        K=len(tables),
    )
    return (found.flat, found.values[0]) if tables else found.flat


def test_a_sum_is_checked() -> None:
    with connect("solo") as comm:

        def add(**changed: Any) -> None:
            usual = {"placed": 0, "divided": 0, "described": 0, "borrow": 0, "starts": [], "stops": [], "sparse": []}
            terms = changed.pop("terms", [1.0])
            comm.window.run("sum", True, terms, [tf.ones(4)], **usual | changed, compression=0, K=0)

        add()
        for changed in (
            {"terms": [1.0] * 6},  # of which 5 are entries, and there are 4
            {"terms": tf.zeros(0, tf.float64)},
            {"divided": 5},
            {"described": -1},
            {"placed": -1},
            {"placed": 1 << 40},
        ):
            refused("does not fit what is asked of it", lambda changed=changed: add(**changed))
        refused("attributes of different lengths", lambda: add(starts=[0]))


def test_a_table_that_no_machine_has_room_for() -> None:
    with connect("solo") as comm:
        with pytest.raises(MemoryError, match="the rows of variable 't'"):
            comm.window.sparse_variable("'t'", tf.TensorShape([1 << 40, 1 << 10]))
        table = comm.window.sparse_variable("'t'", tf.TensorShape([1 << 44, 1]))  # 64 TiB of positions
        rows = tf.ones((1, 1)), tf.constant([1 << 43], tf.int64)
        run = functools.partial(comm.window.run, "collect_rows", True, True, *rows, describes=0)
        refused(r"DG070\]: no memory for 17592186044416 rows of 1 of variable 't'", lambda: run(variable=table.address))
        with pytest.raises(MemoryError, match="no memory for vectors"):
            comm.window.reserve(1 << 45, tf.float32)
        assert comm.all_sum([tf.ones(2)]).numpy().tolist() == [1, 1]


def test_a_file_that_is_too_short_is_not_mapped() -> None:
    """Else the first touch of a page behind its end would be a SIGBUS."""
    with connect("solo") as comm:
        fd = os.memfd_create("short")
        os.ftruncate(fd, 4096)
        with pytest.raises(MemoryError, match="no memory for vectors of 1048576 bytes"):
            comm.window._map(1 << 20, fd, Seat())
        os.close(fd)


STATISTICS: dict[str, Callable[[], Any]] = {
    "rows of 6": lambda: ops().distgrad_statistics(tf.zeros((2, 6), tf.float64), 1.0, T=tf.float32),
    "rows of 0": lambda: ops().distgrad_statistics(tf.zeros((2, 0), tf.float64), 1.0, T=tf.float32),
    "no rows": lambda: ops().distgrad_statistics(tf.zeros((), tf.float64), 1.0, T=tf.float32),
    "two divisors": lambda: ops().distgrad_statistics(tf.zeros((2, 5), tf.float64), [1.0, 1.0], T=tf.float32),
    "copy of too much": lambda: ops().distgrad_copy_to(PLACE.ctypes.data, [tf.ones(5)], room=4),
    "copy of too little": lambda: ops().distgrad_copy_to(PLACE.ctypes.data, [tf.ones(3)], room=4),
    "change of too much": lambda: ops().distgrad_squared_change(PLACE.ctypes.data, [tf.ones(4), tf.ones(1)], room=4),
    "short notes": lambda: ops().distgrad_note_micro_batch(tf.zeros(3, tf.float64), 1.0, [tf.zeros(3, tf.float64)]),
    "nothing found": lambda: ops().distgrad_note_micro_batch(tf.zeros(4, tf.float64), 1.0, [tf.zeros(0, tf.float64)]),
    "worker 2 of 2": lambda: worker_row(2),
    "worker -1": lambda: worker_row(-1),
}
PLACE = np.zeros(4, "float32")


def ops() -> Any:
    return native.operations()


def worker_row(worker: int) -> Any:
    return ops().distgrad_worker_row(tf.zeros(4, tf.float64), 1.0, 0.0, worker, workers=2, T=tf.float32)


@pytest.mark.parametrize("fault", STATISTICS)
def test_operations_of_statistics_are_checked(fault: str) -> None:
    refused("moments are rows|another size|do not fill a place|there is no worker", STATISTICS[fault])
    assert PLACE.tolist() == [0] * 4


# ---- threads


def test_two_threads_of_a_lone_worker_each_get_their_sum() -> None:
    """Of vectors of their own size, while the window grows and lends its memory."""
    with connect("solo") as comm:

        def sums(thread: int) -> int:
            sizes = np.random.default_rng(thread).integers(1, 300_000, 150)
            return sum(is_right(int(size), thread + 1.0) for size in sizes)

        def is_right(size: int, value: float) -> bool:
            division = Division(1, tf.constant([2.0, 0.0], tf.float64), ranges=[(0, size)])
            total = comm.sum_and_divide(lambda: [tf.fill([size], value), tf.ones(1)], (), division)
            found = total.blocks[0].numpy()
            return found.shape == (size,) and bool((found == value / 2).all())

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(sums, range(2))) == [150, 150]


def test_steps_of_two_threads_are_told_apart() -> None:
    """Their gradients would stand in the same place of the window."""
    with connect("solo") as comm:
        window = comm.window
        place = {"variables": ["'a'"], "starts": [0], "stops": [16], "sizes": [6]}

        def add(first: bool) -> None:
            window.run("add", first, True, [tf.ones(6)], **place, describes=0)

        add(True)
        with ThreadPoolExecutor(1) as other:
            other.submit(add, True).result()
        refused("DG002.*two threads take a step with one communicator at once", lambda: add(False))
        refused("DG002.*two threads take a step with one communicator at once", lambda: summed(window, 16))

        @tf.function
        def step() -> tf.Tensor:
            add(True)
            add(False)
            return summed(window, 16)

        assert step().numpy().tolist() == [2.0] * 6 + [0.0] * 10
