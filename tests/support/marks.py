"""Choosing tests."""

from collections.abc import Iterable

import pytest


def one_for_every_engine(names: Iterable[str], chosen: str) -> list[object]:
    """Parameters of which one is run on every engine, and the others only where all are."""
    return [pytest.param(name, marks=pytest.mark.every_engine) if name == chosen else name for name in names]
