"""The benchmark proves what it measures: right results only, every peer named, nothing left running."""

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgrad import DistributedStep, connect
from distgrad.bench import models, output
from distgrad.bench.cases import DISTGRAD, EMBEDDINGS, HOROVODS, JOBS, PEERS, TABLES, Contestant, Job, takes_part
from distgrad.bench.compare import Row, compare, is_void, median_interval
from distgrad.bench.engines import by_hand
from distgrad.bench.engines.keras_mpi import ALTERED
from distgrad.bench.jobs import JobLost, Jobs, why_absent
from distgrad.bench.rounds import Budget, CaseRun, Measurements
from support.launching import BIN, horovod_installed, run, start
from support.processes import read, state, wait_until, with_environment

BRIEF = Budget(rounds=3, turn=0.001, tries=1)
STEP = {"table": "step", "case": "small"}


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


def test_who_is_not_installed_is_named() -> None:
    assert why_absent(Job("none", "mpirun")) is None
    with Jobs({"ghost": Job("no_such_engine", "mpirun")}, 2) as jobs:
        assert "did not start" in jobs.lost["ghost"]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    chosen = [DISTGRAD, "mpi default", "mwms"] + (
        ["horovod-mpi 1 ms", "horovod-gloo 1 ms"] if horovod_installed() else []
    )
    with Jobs({name: JOBS[name] for name in chosen}, 2) as started:
        assert started.lost == {}
        yield started


@pytest.mark.parametrize(
    ("table", "case"),
    [
        ("sum", "4 KB"),
        pytest.param("sum", "100 MB in 50 tensors", marks=pytest.mark.thorough),
        ("step", "small"),
    ],
)
def test_everyone_s_result_is_right(jobs: Jobs, table: str, case: str, tmp_path: Path) -> None:
    """Each contestant's first result is compared with the exact sum, or with the float64 oracle's step."""
    present = [one for one in TABLES[table].contestants if one.job in jobs and takes_part(table, case, one, True)]
    trial = CaseRun(jobs, table, case, present)
    trial.prepare(BRIEF)
    measured = trial.measure(BRIEF)
    trial.clear()
    assert trial.failed == {}
    found = compare(table, measured)
    peers = {"mwms"} | ({*HOROVODS, "best-horovod"} if horovod_installed() else set())
    assert {row.against for row in found if row.contestant == DISTGRAD} >= peers
    assert all(0 < row.low <= row.ratio <= row.high for row in found)

    output.write_json(tmp_path / "bench.json", found, measured, {"machine": output.machine()})
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written["rows"][0]) == {"table", "case", "contestant", "against", "ratio", "low", "high"}
    assert {len(one["seconds"]) for one in written["rounds"]} == {BRIEF.rounds}
    output.plot(tmp_path / "bench.png", found)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert output.markdown(found, measured).count("\n") == len(found) - 1


def test_bare_passes_keep_the_shapes_of_a_model_over_time(jobs: Jobs) -> None:
    bare = [one for one in TABLES["accumulate"].contestants if one.turn == "4 bare micro-batches"]
    trial = CaseRun(jobs, "accumulate", "transformer", bare)
    trial.prepare(BRIEF)
    trial.clear()
    assert trial.failed == {}


@pytest.mark.parametrize(("turn", "whole"), [("step", False), ("step densified", True)])
def test_what_is_called_densified_sums_whole_tables(turn: str, whole: bool) -> None:
    model = models.build("embedding 20k")
    step = DistributedStep(model, models.loss(), by_hand.sgd(model), comm=connect("solo"), log_every=0)
    with ALTERED.get(turn, contextlib.nullcontext)():
        report = step(*by_hand.batch("embedding 20k", 0, 1))
    table = next(entries for path, entries in report.entries().items() if "embeddings" in path)
    assert (table.size == EMBEDDINGS["embedding 20k"] * models.WIDTH) is whole


def test_a_wrong_step_takes_no_part(jobs: Jobs) -> None:
    """A step without communication, passed off as one with."""
    wrong = Contestant("impostor", DISTGRAD, "step alone")
    trial = CaseRun(jobs, "step", "small", [wrong])
    trial.prepare(BRIEF)
    assert "differs from the oracle's" in trial.failed[wrong.label]


def test_a_turn_that_fails_on_every_rank_is_lost_alone(jobs: Jobs) -> None:
    broken, well = (Contestant("mpi", "mpi default", turn) for turn in ("no such turn", "Allreduce"))
    trial = CaseRun(jobs, "sum", "4 KB", [broken, well])
    trial.prepare(BRIEF)
    assert [one.label for one in trial.measure(BRIEF)] == [well.label]
    trial.clear()
    assert list(trial.failed) == [broken.label]
    assert "no such turn" in trial.failed[broken.label]
    assert "mpi default" in jobs


def test_without_an_oracle_nobody_takes_part(jobs: Jobs) -> None:
    well = Contestant(DISTGRAD, DISTGRAD, "step")
    trial = CaseRun(jobs, "step", "no such model", [well])
    trial.prepare(BRIEF)
    assert trial.measure(BRIEF) == []
    assert "there is no oracle" in trial.failed[well.label]
    assert DISTGRAD in jobs


def test_a_turn_that_fails_on_some_ranks_loses_the_job(jobs: Jobs) -> None:
    """The others may be waiting for them."""
    jobs._ranks["mwms"][1].stream.write('{"do": "nothing that rank 0 was told"}\n')
    with pytest.raises(JobLost, match="KeyError"):
        jobs.ask("mwms", do="clear")
    assert "KeyError" in jobs.lost["mwms"]


def test_a_job_that_is_lost_is_named_and_the_others_go_on(jobs: Jobs) -> None:
    os.kill(jobs._ranks["mpi default"][1].pid, signal.SIGKILL)
    with pytest.raises(JobLost):
        jobs.ask("mpi default", do="clear")
    assert "mpi default" in jobs.lost
    assert jobs.ask(DISTGRAD, do="clear") == [{}, {}]


def test_the_command_line() -> None:
    distgrad = BIN / "distgrad"
    help_text = run([distgrad, "bench", "--help"])
    assert help_text.status == 0
    assert all(table in help_text.out for table in TABLES)
    refused = run([distgrad, "bench", "--peers", "mpi,nobody"])
    assert refused.status == 64
    assert "'nobody' is none of mpi, " in refused.err


@pytest.mark.thorough
def test_a_quick_run_from_end_to_end(tmp_path: Path) -> None:
    """The smallest there is: one table, no peers; its output is a Markdown table, and no rank outlives it."""
    before = workers()
    job = run([BIN / "distgrad", "bench", "sum", "--quick", "--peers", "", "--json", tmp_path / "b.json"], timeout=280)
    assert job.status == 0, job.err[-3000:]
    assert "| case | contestant | ms | against |" in job.out
    found = json.loads((tmp_path / "b.json").read_text())
    assert {(row["contestant"], row["against"]) for row in found["rows"]} >= {
        (DISTGRAD, f"{DISTGRAD} again"),
        (DISTGRAD, "limit"),
    }
    assert {len(one["seconds"]) for one in found["rounds"]} == {30}
    assert workers() <= before


def test_a_driver_that_is_killed_leaves_nothing_behind() -> None:
    """Not even ranks that stand stopped, which cannot notice it."""
    mark = {"BENCH_TEST_MARK": uuid.uuid4().hex}
    driver = start([BIN / "distgrad", "bench", "sum", "--quick", "--peers", "mpi"], mark)
    wait_until(lambda: [state(pid) for pid in with_environment(mark)].count("T") >= 2, 100)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not with_environment(mark), 10)


def workers() -> set[str]:
    """Numbers of the processes that run a benchmark's worker."""
    processes = Path("/proc").glob("[0-9]*")
    commands = {process.name: read(process / "cmdline").partition("-m\0")[2] for process in processes}
    return {number for number, command in commands.items() if command.startswith("distgrad.bench.worker")}
