"""What a browser sees: TensorBoard on the events that were written, and the page that `distgrad report` makes."""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from matplotlib import pyplot

import distgrad
from distgrad.seeing import TensorBoard
from support.launching import BIN, run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,1200"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def seen(address: str, *, wait: int = 5000) -> tuple[str, str]:
    """The page's content once its scripts have run, and what the browser said."""
    job = run([BROWSER, *FLAGS, f"--virtual-time-budget={wait}", "--dump-dom", address])
    assert job.status == 0, job.err[-2000:]
    return job.out, job.err


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything asked for, and all that it leaves behind."""
    folder = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    step = distgrad.DistributedStep(
        model,
        "mse",
        "adam",
        comm=distgrad.connect("solo"),
        micro_batch_size=4,
        groups={"kernels": "kernel"},
        statistics="all",
        log_every=0,
        log_file=folder / "run.jsonl",
        listeners=[TensorBoard(folder / "events", histograms_every=10)],
    )
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = rng.normal(size=(16, 6)).astype("float32")
        step(x, x.sum(1, keepdims=True))
    step.close()
    return folder


@contextlib.contextmanager
def tensorboard(events: Path) -> Iterator[str]:
    """TensorBoard's own server on these events, and its address."""
    command = [BIN / "tensorboard", "--logdir", events, "--port", "0", "--load_fast", "false"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = iter(server.stderr.readline, "")
        yield next(found.group(1) for line in said if (found := re.search(r"(http://localhost:\d+)/", line)))
    finally:
        server.terminate()
        server.communicate(timeout=20)


def tags(address: str, plugin: str) -> set[str]:
    """The names that TensorBoard shows, once it has read the events."""
    for _ in range(100):
        with urllib.request.urlopen(f"{address}/data/plugin/{plugin}/tags") as answer:
            runs: dict[str, Any] = json.load(answer)
        if runs:
            return {tag for run_tags in runs.values() for tag in run_tags}
        time.sleep(0.2)
    return set()


def test_tensorboard_shows_scalars_and_histograms(run_files: Path) -> None:
    with tensorboard(run_files / "events") as address:
        scalars = tags(address, "scalars")
        assert {"loss", "gradient/sum", "gradient/norm", "gradient/zeros", "gradient/noise_scale"} <= scalars
        assert {"groups/kernels/norm", "workers/0/norm", "seconds/compute", "update_ratio"} <= scalars
        assert tags(address, "histograms") == {"entries/kernels"}
        words = " ".join(re.sub(r"<[^>]+>", " ", seen(f"{address}/#timeseries", wait=20000)[0]).split())
    assert "gradient /norm" in words  # which it sets in two ways
    assert "gradient /noise_scale" in words


def test_the_page_of_a_run_opens_without_a_network(run_files: Path) -> None:
    page, picture = run_files / "run.html", run_files / "page.png"
    job = run([BIN / "distgrad", "report", run_files / "run.jsonl", "--html", page, "--png", run_files / "run.png"])
    assert job.status == 0, job.err
    assert job.out.startswith("steps 30 | skipped steps 0 | damaged lines 0 | first loss")
    content, said = seen(page.as_uri())
    assert "CONSOLE" not in said
    shown = ["loss", "gradient sum", "gradient norm", "gradient norm by variable", "gradient norm by worker"]
    assert [title for title in shown if f'alt="{title}"' not in content] == []
    assert len(re.findall("<img", content)) == 7
    assert not re.search(r'(src|href)="(?!data:)', content)
    run([BROWSER, *FLAGS, f"--screenshot={picture}", page.as_uri()])
    for drawn in (picture, run_files / "run.png"):
        pixels = pyplot.imread(drawn)[..., :3]
        blue, purple = ([31, 119, 180], [148, 103, 189])  # lines of the loss, and of the noise scale
        for color in (blue, purple):
            assert (np.abs(pixels - np.divide(color, 255)).max(-1) < 0.1).sum() > 200
