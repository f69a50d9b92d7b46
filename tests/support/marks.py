"""Choosing tests."""

from collections.abc import Iterable

import pytest

from support.launching import needs_horovod


def usual_ones(names: Iterable[str], usual: Iterable[str], chosen: str = "") -> list[object]:
    """Parameters of which some are run as a rule, the others with `-m thorough`, and one on every engine."""
    usual = set(usual) | {chosen}
    marked = [pytest.param(name, marks=[pytest.mark.thorough]) for name in names if name not in usual]
    return [*one_for_every_engine([name for name in names if name in usual], chosen), *marked]


def one_for_every_engine(names: Iterable[str], chosen: str) -> list[object]:
    """Parameters of which one is run on every engine, and on three workers, and the others only where all are."""
    marks = [pytest.mark.every_engine, pytest.mark.three_workers]
    return [pytest.param(name, marks=marks) if name == chosen else name for name in names]


def first_as_a_rule(*engines: str) -> pytest.MarkDecorator:
    """Run a test of jobs on the first of these engines as a rule, and on the others with `-m thorough`."""
    marks = {engine: [needs_horovod] if engine.startswith("horovod") else [] for engine in engines}
    for engine in engines[1:]:
        marks[engine].append(pytest.mark.thorough)
    return pytest.mark.parametrize("engine", [pytest.param(engine, marks=marks[engine]) for engine in engines])
