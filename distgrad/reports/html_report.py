"""The HTML page of a run: the logged numbers as pictures, in one file that needs no other and no network."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from distgrad.errors import shown
from distgrad.reports.history import History
from distgrad.reports.noise import average

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.fonttype": "none",
}
MOST_VARIABLES = 1000  # in a picture
MOST_LABELS = 64  # of workers
LONGEST_LABEL = 100  # characters
NOISE_WINDOW = 50  # buckets of the noise scale's moving average


class Panel(NamedTuple):
    """One picture: its title, the function that draws it, and its height."""

    title: str
    draw: Callable[[Axes], None]
    height: float = 2.6  # inches


def panels(run: History) -> Iterator[Panel]:
    """List the pictures of a run; numbers that were not logged have none."""
    yield Panel("loss", lambda axes: _band(axes, run, "loss"))
    yield Panel("gradient sum", lambda axes: _band(axes, run, "gradient_sum"))
    yield Panel("gradient norm", lambda axes: _band(axes, run, "gradient_norm", log=True))
    if np.isfinite(run.column("trace")[1]).any():
        yield Panel("gradient noise scale (moving average), in examples", lambda axes: _noise(axes, run))
    if run.variables:
        number = min(len(run.variables), MOST_VARIABLES)
        some = f" (the first {number} of {len(run.variables)})" if number < len(run.variables) else ""
        yield Panel(f"gradient norm by variable{some}", lambda axes: _variables(axes, run), 1.2 + 0.16 * number)
    if run.workers:
        yield Panel("gradient norm by worker", lambda axes: _workers(axes, run))
    if np.isfinite(run.column("compute")[1]).any():
        yield Panel("where a step's time goes (root), ms", lambda axes: _times(axes, run))
    else:
        yield Panel("seconds a step", lambda axes: _band(axes, run, "seconds", log=True))


def summary(run: History) -> dict[str, str]:
    """Describe the run in a few values, by name."""
    loss, seconds = run.column("loss")[1], run.column("seconds")[1]
    values = {"steps": f"{run.lines}", "skipped steps": f"{run.skipped}", "damaged lines": f"{run.damaged}"}
    if run.lines:
        values |= {"first loss": f"{loss[0]:.5g}", "last loss": f"{loss[-1]:.5g}"}
        known = seconds[np.isfinite(seconds)]
        values |= {"median step": f"{1000 * np.median(known):.3g} ms" if known.size else "unknown"}
    noise = average(zip(run.column("trace")[1], run.column("squared_norm")[1], strict=True))
    if not np.isnan(noise.scale):
        values["noise scale"] = f"{noise.scale:.3g} examples"
    return values


def label(name: str) -> str:
    """Return a name as a page or a terminal may show it: cut short and escaped, if it must be."""
    return name if name.isprintable() and len(name) <= LONGEST_LABEL else shown(name)


def write_html(path: Path, name: str, run: History) -> None:
    """Write the page. `name` is its title."""
    rows = "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in summary(run).items())
    sources = [(panel.title, f"data:image/svg+xml;base64,{_picture([panel], 'svg')}") for panel in panels(run)]
    pictures = "".join(f'<figure><img alt="{title}" src="{source}"></figure>\n' for title, source in sources)
    path.write_text(TEMPLATE.format(name=html.escape(label(name)), summary=rows, pictures=pictures), encoding="utf-8")


def write_png(path: Path, run: History) -> None:
    """Write all pictures below one another as one PNG file."""
    path.write_bytes(base64.b64decode(_picture(list(panels(run)), "png")))


def _picture(drawn: Sequence[Panel], kind: str) -> str:
    """Draw panels below one another, and return the picture as base64."""
    heights = [panel.height for panel in drawn]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], drawn, strict=True):
            axes.set_title(panel.title)
            panel.draw(axes)
            axes.set_xlabel("step")
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a browser has it
            figure.savefig(content, format=kind, dpi=100)
    return base64.b64encode(content.getvalue()).decode()


def _band(axes: Axes, run: History, name: str, log: bool = False) -> None:
    """Draw the mean of each bucket as a line, and its extremes as a band."""
    steps = run.column("step")[1]
    low, mean, high = run.column(name)
    axes.fill_between(steps, low, high, alpha=0.25, linewidth=0)
    axes.plot(steps, mean)
    if log and np.nanmin(np.where(mean > 0, mean, np.nan), initial=np.inf) < np.inf:
        axes.set_yscale("log")


def _noise(axes: Axes, run: History) -> None:
    steps, pairs = run.column("step")[1], np.stack([run.column("trace")[1], run.column("squared_norm")[1]], 1)
    scale = np.array([average(pairs[max(0, last - NOISE_WINDOW) : last]).scale for last in range(1, len(pairs) + 1)])
    shown = np.isfinite(scale) & (scale > 0)
    axes.plot(steps[shown], scale[shown], color="tab:purple")
    if shown.any():
        axes.set_yscale("log")


def _variables(axes: Axes, run: History) -> None:
    norms = np.stack(list(run.variables.values())[:MOST_VARIABLES])
    positive = norms[np.isfinite(norms) & (norms > 0)]
    low, high = np.percentile(positive, [1, 99.5]) if positive.size else (1, 1)
    limits = LogNorm(low, high) if low < high else None
    steps = run.column("step")[1]
    extent = (steps[0], max(steps[-1], steps[0] + 1), len(norms), 0)
    picture = axes.imshow(np.where(norms > 0, norms, np.nan), aspect="auto", extent=extent, norm=limits, cmap="viridis")
    axes.set_facecolor("black")  # what is zero or not finite
    # A dollar in a name does not begin a formula.
    names = [label(name) for name in list(run.variables)[:MOST_VARIABLES]]
    axes.set_yticks(np.arange(len(norms)) + 0.5, names, fontsize=7, parse_math=False)
    axes.grid(visible=False)
    axes.figure.colorbar(picture, ax=axes, pad=0.01)


def _workers(axes: Axes, run: History) -> None:
    steps = run.column("step")[1]
    for rank, norms in run.workers.items():
        axes.plot(steps, norms, alpha=0.7, label=f"rank {rank}")
    if any((norms > 0).any() for norms in run.workers.values()):
        axes.set_yscale("log")
    if len(run.workers) <= MOST_LABELS:
        axes.legend(loc="lower right", ncols=8, bbox_to_anchor=(1, 0.97))


def _times(axes: Axes, run: History) -> None:
    steps, names = run.column("step")[1], ("compute", "reduce", "apply")
    parts = [1000 * np.maximum(np.nan_to_num(run.column(name)[1]), 0) for name in names]
    axes.stackplot(steps, *parts, labels=names, alpha=0.8)
    axes.set_ylim(0, 1.2 * np.percentile(np.sum(parts, 0), 98) or 1)  # the first step is traced
    axes.legend(loc="lower right", ncols=3, bbox_to_anchor=(1, 0.97))


TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>
body {{ margin: 2rem auto; max-width: 80rem; padding: 0 1rem; font: 16px/1.4 system-ui, sans-serif; color: #222; }}
h1 {{ font-size: 1.3rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: .5rem 2rem; }}
dl div {{ display: flex; flex-direction: column; }}
dt {{ color: #666; font-size: .8rem; }}
dd {{ margin: 0; font-weight: 600; }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
img {{ width: 100%; }}
</style>
<h1>{name}</h1>
<dl>{summary}</dl>
<main>{pictures}</main>
</html>
"""
