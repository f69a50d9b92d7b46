"""One run of the benchmark: start the jobs, measure every case, print the tables."""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.progress

from distgrad.bench import output
from distgrad.bench.cases import DISTGRAD, JOBS, KERAS, LIMIT, PEERS, TABLES, Case, Contestant, takes_part
from distgrad.bench.compare import Row, compare, is_void
from distgrad.bench.jobs import Jobs
from distgrad.bench.rounds import FULL, QUICK, Budget, CaseRun, Measurements
from distgrad.errors import print_line, warn


class _PlannedCase(NamedTuple):
    """One case of one table and the contestants that are to meet in it."""

    table: str
    case: str
    contestants: Sequence[Contestant]


def run(
    tables: Sequence[str],
    *,
    quick: bool = False,
    peers: Sequence[str] = PEERS,
    size: int = 2,
    cases: Sequence[str] = (),
    json_file: Path | None = None,
    plot_file: Path | None = None,
) -> None:
    """Measure, and print Markdown on stdout as each case is done; progress goes to stderr.

    Args:
        tables: some of "sum", "step", "accumulate", "stats".
        quick: True measures fewer rounds, cases and configurations.
        peers: whom to measure beside distgrad; those that are not installed are named as absent.
        size: ranks of every job.
        cases: names of the cases to measure; if empty, all.
        json_file: file for rows and raw rounds.
        plot_file: file for a picture.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the jobs on the way out
    schedule = [
        _plan(table, case, peers, quick)
        for table in tables
        for case in TABLES[table].cases
        if (case.name in cases if cases else case.quick or not quick)
    ]
    needed = {one.job for planned in schedule for one in planned.contestants}
    budget = QUICK if quick else FULL
    rows: list[Row] = []
    measured: list[Measurements] = []
    machine = output.machine()
    with _progress_bar() as bar, Jobs({name: job for name, job in JOBS.items() if name in needed}, size) as jobs:
        task = bar.add_task("", total=sum(len(planned.contestants) + budget.rounds for planned in schedule))
        about = {"machine": machine, "ranks": size, "quick": quick, "absent": jobs.lost}
        _print(_introduction(machine, jobs, budget))
        for number, planned in enumerate(schedule):
            if number == 0 or planned.table != schedule[number - 1].table:
                _print(f"\n## {planned.table}\n\n{output.HEADER}")
            rows_of_case, measured_in_case = _measure(jobs, planned, budget, _advance(bar, task, planned))
            rows += rows_of_case
            measured += measured_in_case
            if json_file is not None:  # after every case, so that an interrupted run keeps what it has
                output.write_json(json_file, rows, measured, about)
    _print("\n## What each took of the machine\n\n" + output.resources(measured))
    if plot_file is not None:
        output.plot(plot_file, rows)


def _plan(table: str, case: Case, peers: Sequence[str], quick: bool) -> _PlannedCase:
    invited = (one for one in TABLES[table].contestants if one.peer in (*peers, DISTGRAD, KERAS, LIMIT))
    return _PlannedCase(table, case.name, [one for one in invited if takes_part(table, case.name, one, quick)])


def _measure(
    jobs: Jobs, planned: _PlannedCase, budget: Budget, progress: Callable[[str], None]
) -> tuple[list[Row], list[Measurements]]:
    """Measure one case and print its lines."""
    present = [one for one in planned.contestants if one.job in jobs]
    case = CaseRun(jobs, planned.table, planned.case, present)
    case.prepare(budget, progress)
    for _ in range(budget.tries):
        measured = case.measure(budget, progress)
        rows = compare(planned.table, measured)
        if not is_void(rows):
            break
    case.clear()
    _print(output.markdown(rows, measured))
    for label, reason in case.failed.items():
        warn(f"{planned.table} {planned.case}: {label} takes no part: {reason}")
    if is_void(rows):
        warn(f"{planned.table} {planned.case} is void: distgrad against itself does not read 1.00 ± 0.03")
    return rows, measured


def _introduction(machine: Mapping[str, Any], jobs: Jobs, budget: Budget) -> str:
    crowded = " (oversubscribed: correctness only, no speed)" if jobs.size > machine["cores"] else ""
    lines = [
        f"{jobs.size} ranks on {machine['cores']} cores{crowded}, {budget.rounds} interleaved rounds a case or more",
        ", ".join(f"{name} {version}" for name, version in machine.items() if version and name != "cores"),
        *(f"absent: {name}: {reason}" for name, reason in jobs.lost.items()),
    ]
    return "\n".join(lines)


def _progress_bar() -> rich.progress.Progress:
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn())
    times = (rich.progress.TaskProgressColumn(), rich.progress.TimeRemainingColumn())
    return rich.progress.Progress(*columns, *times, console=rich.console.Console(stderr=True), transient=True)


def _advance(bar: rich.progress.Progress, task: rich.progress.TaskID, planned: _PlannedCase) -> Callable[[str], None]:
    return lambda done: bar.update(task, advance=1, description=f"{planned.table} {planned.case}: {done}")


def _print(text: str) -> None:
    print_line(text, sys.stdout)
