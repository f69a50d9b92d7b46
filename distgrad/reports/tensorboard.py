"""Scalars and histograms for TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from distgrad.errors import EngineMissing
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport


class TensorBoard(Listener):
    """Writes reports as TensorBoard's events, from the root alone.

    Args:
        log_dir: the directory for `tensorboard --logdir`.
        every: number of steps from one set of scalars to the next.
        histograms_every: number of steps from one set of histograms to the next, 0 for none. They show the gradient's
            entries, by group, or by variable if there are no groups.

    Raises:
        EngineMissing: TensorBoard, which `tf.summary` needs, is not installed.
    """

    def __init__(self, log_dir: str | Path, every: int = 1, histograms_every: int = 100) -> None:
        if not hasattr(tf.summary, "scalar"):
            raise EngineMissing("TensorBoard is not installed", "pip install 'distgrad[tensorboard]'")
        self._log_dir, self._every, self._histograms_every = str(log_dir), every, histograms_every
        self._writer: tf.summary.SummaryWriter | None = None

    def hear(self, report: StepReport) -> None:
        """Write the scalars and histograms that are due at this step."""
        if self._writer is None:  # not before the first step: other processes would each make an empty file
            self._writer = tf.summary.create_file_writer(self._log_dir, flush_millis=2000)
        with self._writer.as_default(step=report.step):
            if report.step % self._every == 0:
                for name, value in scalars(report):
                    tf.summary.scalar(name, value)
            if self._histograms_every and report.step % self._histograms_every == 0:
                for label, entries in report.entries().items():
                    tf.summary.histogram(f"entries/{label}", entries)

    def close(self) -> None:
        """Write everything that is still in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(report: StepReport) -> Iterator[tuple[str, float]]:
    """List all numbers of a report, by their names in TensorBoard."""
    yield "loss", report.loss
    told = report.told
    parts: dict[str, Any] = {"gradient": report, **{f"groups/{label}": found for label, found in told.groups.items()}}
    parts |= {f"variables/{path}": found for path, found in told.variables.items()}
    for name, part in parts.items():
        yield f"{name}/sum", part.gradient_sum
        yield f"{name}/norm", part.gradient_norm
        yield f"{name}/max", part.gradient_max
    if told.zeros is not None:
        yield "gradient/zeros", told.zeros
    if told.noise is not None:
        yield "gradient/noise_scale", told.noise.scale
    for rank, worker in enumerate(told.workers):
        yield f"workers/{rank}/norm", worker.gradient_norm
        yield f"workers/{rank}/sum", worker.gradient_sum
    yield "seconds/step", report.seconds
    if told.times is not None:
        yield from ((f"seconds/{name}", getattr(told.times, name)) for name in ("compute", "reduce", "apply"))
    if report.updates is not None:
        yield "update_ratio", report.updates.whole
        yield from ((f"update_ratio/{path}", ratio) for path, ratio in report.updates.by_variable.items())
