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
from launching import BIN, run

import distgrad
from distgrad.seeing import TensorBoard

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def seen(address: str, *, wait: int = 5000) -> tuple[str, str]:
    """The page's content once its scripts have run, and what the browser said."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    job = run([BROWSER, *flags, f"--virtual-time-budget={wait}", "--dump-dom", address], timeout=90)
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
        content, _ = seen(f"{address}/#timeseries", wait=20000)
    assert "gradient/norm" in content or "gradient" in content.split("<body", 1)[1]
