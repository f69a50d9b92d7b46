"""The benchmark proves what it measures: right results only, every peer named, nothing left running."""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgrad.bench import output
from distgrad.bench.cases import DISTGRAD, HOROVODS, JOBS, TABLES, Contestant, Job, takes_part
from distgrad.bench.compare import compare
from distgrad.bench.jobs import JobLost, Jobs, why_absent
from distgrad.bench.rounds import Budget, CaseRun
from support.launching import BIN, PATIENCE, horovod_installed, run, start
from support.processes import read, state, wait_until, with_environment

BRIEF = Budget(rounds=3, turn=0.001, tries=1)

STEP = {"table": "step", "case": "small"}


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
    job = run([BIN / "distgrad", "bench", "sum", "--quick", "--peers", "", "--json", tmp_path / "b.json"])
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
    wait_until(lambda: [state(pid) for pid in with_environment(mark)].count("T") >= 2, PATIENCE)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not with_environment(mark), 10)


def workers() -> set[str]:
    """Numbers of the processes that run a benchmark's worker."""
    processes = Path("/proc").glob("[0-9]*")
    commands = {process.name: read(process / "cmdline").partition("-m\0")[2] for process in processes}
    return {number for number, command in commands.items() if command.startswith("distgrad.bench.worker")}
