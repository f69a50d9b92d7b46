"""The compiled core and Python mean the same by what they share; a core that does not is refused."""

import ctypes
import enum
from pathlib import Path

import pytest

from distgrad import native
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
    renumbered = enum.IntEnum("Event", {"GROW": 0, "SUM_BETWEEN_HOSTS": 1, "MISMATCH": 2, "VOTE": 4})
    monkeypatch.setattr(layout, "Event", renumbered)
    with pytest.raises(EngineMissing, match=r"Event\.VOTE is 3 in the core and 4 in Python"):
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
