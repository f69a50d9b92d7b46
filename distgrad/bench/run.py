"""One run of the benchmark: start the jobs, measure every case, say what came out."""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from distgrad.bench import output
from distgrad.bench.cases import JOBS, LIMIT, OWN, PEERS, TABLES, Case, takes_part
from distgrad.bench.jobs import Jobs
from distgrad.bench.rounds import FULL, QUICK, Effort, Row, Series, Trial, is_void, rows
from distgrad.errors import print_line, warn


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
        quick: fewer rounds, cases and configurations.
        peers: whom to measure beside distgrad; those that are not installed are named as absent.
        size: ranks of every job.
        cases: only these; none are all.
        json_file, plot_file: where to put rows and raw rounds, and a picture.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the jobs on the way out
    schedule = [_Planned(table, case, peers, quick) for table in tables for case in TABLES[table].cases]
    wanted = [planned for planned in schedule if planned.case.quick or not quick]
    schedule = [planned for planned in schedule if planned.case.name in cases] if cases else wanted
    needed = {one.job for planned in schedule for one in planned.contestants}
    effort = QUICK if quick else FULL
    found: list[Row] = []
    measured: list[Series] = []
    machine = output.machine()
    with _progress() as progress, Jobs({name: job for name, job in JOBS.items() if name in needed}, size) as jobs:
        task = progress.add_task("", total=sum(len(planned.contestants) + effort.rounds for planned in schedule))
        about = {"machine": machine, "ranks": size, "quick": quick, "absent": jobs.lost}
        _say(_introduction(machine, jobs, effort))
        for number, planned in enumerate(schedule):
            if number == 0 or planned.table != schedule[number - 1].table:
                _say(f"\n## {planned.table}\n\n{output.HEADER}")
            rows_of_case, series = _measure(jobs, planned, effort, _ticker(progress, task, planned))
            found += rows_of_case
            measured += series
            if json_file is not None:  # after every case, so that an interrupted run keeps what it has
                output.write_json(json_file, found, measured, about)
    _say("\n## What each took of the machine\n\n" + output.resources(measured))
    if plot_file is not None:
        output.plot(plot_file, found)


class _Planned:
    """One case of one table and the contestants that were asked to it."""

    def __init__(self, table: str, case: Case, peers: Sequence[str], quick: bool) -> None:
        self.table, self.case = table, case
        invited = (one for one in TABLES[table].contestants if one.peer in (*peers, OWN, LIMIT))
        self.contestants = [one for one in invited if takes_part(table, case.name, one, quick)]


def _measure(
    jobs: Jobs, planned: _Planned, effort: Effort, tick: Callable[[str], None]
) -> tuple[list[Row], list[Series]]:
    """Measure one case and print it."""
    present = [one for one in planned.contestants if one.job in jobs]
    trial = Trial(jobs, planned.table, planned.case.name, present)
    trial.prepare(effort, tick)
    for _ in range(effort.tries):
        series = trial.measure(effort, tick)
        found = rows(planned.table, series)
        if not is_void(found):
            break
    trial.clear()
    _say(output.markdown(found, series))
    for label, reason in trial.failed.items():
        warn(f"{planned.table} {planned.case.name}: {label} takes no part: {reason}")
    if is_void(found):
        warn(f"{planned.table} {planned.case.name} is void: distgrad against itself does not read 1.00 ± 0.03")
    return found, series


def _introduction(machine: Mapping[str, Any], jobs: Jobs, effort: Effort) -> str:
    crowded = " (oversubscribed: correctness only, no speed)" if jobs.size > machine["cores"] else ""
    lines = [
        f"{jobs.size} ranks on {machine['cores']} cores{crowded}, {effort.rounds} interleaved rounds a case or more",
        ", ".join(f"{name} {version}" for name, version in machine.items() if version and name != "cores"),
        *(f"absent: {name}: {reason}" for name, reason in jobs.lost.items()),
    ]
    return "\n".join(lines)


def _progress() -> rich.progress.Progress:
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn())
    times = (rich.progress.TaskProgressColumn(), rich.progress.TimeRemainingColumn())
    return rich.progress.Progress(*columns, *times, console=rich.console.Console(stderr=True), transient=True)


def _ticker(progress: rich.progress.Progress, task: rich.progress.TaskID, planned: _Planned) -> Callable[[str], None]:
    return lambda done: progress.update(task, advance=1, description=f"{planned.table} {planned.case.name}: {done}")


def _say(text: str) -> None:
    print_line(text, sys.stdout)
