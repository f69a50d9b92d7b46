"""Choosing tests."""

from collections.abc import Iterable

import pytest


def one_in_every_world(names: Iterable[str], chosen: str) -> list[object]:
    """Parameters of which one is for every world, and the others for those where all tests are run."""
    return [pytest.param(name, marks=pytest.mark.every_world) if name == chosen else name for name in names]
