"""The examination: every check in its order, printed as a table or JSON."""

import json
import os
from collections.abc import Iterator, Sequence

import rich.console
import rich.table

from distgrad.doctor import installed, machine, sums
from distgrad.doctor.finding import ABSENT, NOTE, OK, PROBLEM, Finding

COLOURS = {OK: "green", NOTE: "yellow", ABSENT: "dim", PROBLEM: "bold red"}


def examine(size: int, quick: bool) -> Iterator[Finding]:
    """Yield the finding of each check, quick checks first.

    Args:
        size: workers of the job that is to run here.
        quick: True leaves out all checks that launch workers or load TensorFlow.
    """
    yield from installed.examine(quick)
    yield from machine.examine(size, os.environ)
    if quick:
        return
    if machine.is_launched(os.environ):
        yield Finding("sums", NOTE, "not tried within another launcher's job", "run distgrad doctor by itself")
    else:
        yield from sums.examine(size)


def run(size: int, quick: bool, as_json: bool) -> bool:
    """Run all checks and print their findings on stdout. Returns True if none of them is a problem.

    Args:
        size, quick: see `examine`.
        as_json: True prints JSON, False a table.
    """
    console = rich.console.Console(stderr=True)
    with console.status("looking ...") as status:
        findings: list[Finding] = []
        for finding in examine(size, quick):
            findings.append(finding)
            status.update(f"{finding.check}: {finding.status}; looking further ...")
    well = all(finding.status != PROBLEM for finding in findings)
    if as_json:
        print(json.dumps({"well": well, "findings": [finding._asdict() for finding in findings]}, indent=1))
    else:
        rich.console.Console().print(_table(findings))
    return well


def _table(findings: Sequence[Finding]) -> rich.table.Table:
    table = rich.table.Table("", "looked at", "found", show_lines=False)
    for finding in findings:
        fix = f"\n→ {finding.fix}" if finding.fix else ""
        table.add_row(
            f"[{COLOURS[finding.status]}]{finding.status}[/]", finding.check, rich.text.Text(finding.found + fix)
        )
    return table
