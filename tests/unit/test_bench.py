"""What the benchmark makes of what it has measured, and who takes part in it."""

import contextlib

import pytest

from distgrad import DistributedStep, connect
from distgrad.bench import models
from distgrad.bench.cases import DISTGRAD, EMBEDDINGS, JOBS, PEERS, TABLES, takes_part
from distgrad.bench.compare import Row, compare, is_void, median_interval
from distgrad.bench.engines import by_hand
from distgrad.bench.engines.keras_mpi import ALTERED
from distgrad.bench.rounds import Measurements


def series(name: str, *seconds: float, label: str = "") -> Measurements:
    return Measurements("sum", "4 KB", name, label or name, seconds=list(seconds))


def test_a_ratio_above_1_says_that_the_contestant_is_faster() -> None:
    measured = [
        series(DISTGRAD, 1.0, 2.0, 1.0),
        series("mpi", 3.0, 6.0, 3.0, label="slow"),
        series("mpi", 2.0, 4.0, 2.0),
    ]
    assert compare("sum", measured) == [Row("sum", "4 KB", DISTGRAD, "mpi", 2.0, 2.0, 2.0)]


def test_the_best_horovod_is_the_faster_of_both() -> None:
    measured = [series(DISTGRAD, 1.0), series("horovod-mpi", 3.0), series("horovod-gloo", 2.0)]
    assert {row.against: row.ratio for row in compare("sum", measured)} == {
        "horovod-mpi": 3.0,
        "horovod-gloo": 2.0,
        "best-horovod": 2.0,
    }


@pytest.mark.parametrize(("again", "void"), [(1.02, False), (1.04, True), (0.96, True)])
def test_a_against_a_must_read_1(again: float, void: bool) -> None:
    assert is_void(compare("sum", [series(DISTGRAD, 1.0), series(f"{DISTGRAD} again", again)])) is void


def test_an_interval_of_few_values_is_all_of_them() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_every_contestant_has_a_job_and_every_job_a_contestant() -> None:
    everyone = [one for table in TABLES.values() for one in table.contestants]
    assert {one.job for one in everyone} == set(JOBS)
    assert {one.peer for one in everyone} >= set(PEERS)
    for name, table in TABLES.items():
        for case in table.cases:
            assert sum(takes_part(name, case.name, one, quick=True) for one in table.contestants) >= 3


@pytest.mark.parametrize(("turn", "whole"), [("step", False), ("step densified", True)])
def test_what_is_called_densified_sums_whole_tables(turn: str, whole: bool) -> None:
    model = models.build("embedding 20k")
    step = DistributedStep(
        model, models.loss(), by_hand.optimizer_of("embedding 20k", model), comm=connect("solo"), log_every=0
    )
    with ALTERED.get(turn, contextlib.nullcontext)():
        report = step(*by_hand.batch("embedding 20k", 0, 1))
    table = next(entries for path, entries in report.entries().items() if "embeddings" in path)
    assert (table.size == EMBEDDINGS["embedding 20k"] * models.WIDTH) is whole
