"""The public face is small on purpose, and stays as it is."""

import inspect

import keras
import numpy as np
import pytest

import distgrad


def test_exported_names() -> None:
    assert distgrad.__all__ == [
        "Checkpoint",
        "Communicator",
        "DistgradError",
        "DistributedStep",
        "GradientSum",
        "ReducedGradients",
        "StepReport",
        "WarmUp",
        "all_reduce_gradients",
        "connect",
        "distribute",
        "sum_gradients",
    ]
    for name in distgrad.__all__:
        assert getattr(distgrad, name).__module__.startswith("distgrad.")
        assert name in dir(distgrad)


def signature(function: object) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [
        ("*" if parameter.kind is parameter.KEYWORD_ONLY else "")
        + parameter.name
        + ("" if parameter.default is parameter.empty else f"={parameter.default!r}")
        for parameter in parameters
    ]


def test_signatures() -> None:
    assert signature(distgrad.connect) == ["backend='auto'", "*timeout=60.0"]
    assert signature(distgrad.DistributedStep) == [
        "model",
        "loss",
        "optimizer",
        "*comm",
        "*micro_batch_size=None",
        "*reduction='mean'",
        "*groups=None",
        "*statistics=()",
        "*on_nonfinite='skip'",
        "*max_skipped=100",
        "*check_every=100",
        "*log_every=1",
        "*log_format='text'",
        "*log_file=None",
        "*listeners=()",
        "*jit_compile=False",
        "*shard_update='auto'",
        "*compression='none'",
    ]
    assert signature(distgrad.Checkpoint) == ["directory", "comm", "keep=3", "*every=None"]
    assert signature(distgrad.Checkpoint.save) == signature(distgrad.Checkpoint.resume) == ["self", "step"]
    assert signature(distgrad.distribute) == ["model", "comm", "micro_batch_size=None", "step_options"]
    assert signature(distgrad.DistributedStep.__call__) == ["self", "x", "y=None", "sample_weight=None"]
    assert signature(distgrad.sum_gradients) == [
        "per_example_loss",
        "variables",
        "batch",
        "*comm",
        "*micro_batch_size=None",
    ]


def test_a_communicator_s_face() -> None:
    comm = distgrad.connect("solo")
    protocol = {
        "backend",
        "barrier",
        "broadcast",
        "close",
        "is_root",
        "local_rank",
        "local_size",
        "rank",
        "scope",
        "shard",
        "size",
    }
    besides = {
        "all_sum",
        "alone",
        "exchange",
        "from_root",
        "liveness",
        "process_sum",
        "span",
        "sum_and_divide",
        "sum_over_workers",
        "sum_within",
        "window",
        "worker",
    }
    assert {name for name in dir(comm) if not name.startswith("_")} == protocol | besides
    assert len(besides) <= 12
    assert (comm.backend, comm.rank, comm.size, comm.local_rank, comm.local_size, comm.is_root) == (
        "solo",
        0,
        1,
        0,
        1,
        True,
    )


def test_a_report_s_fields() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=distgrad.connect("solo"), groups={"all": ""}, log_every=0)
    report = step(np.array([[1.0, 2.0]], "float32"), np.array([[1.0]], "float32"))
    assert (report.step, report.workers, report.examples, report.weight) == (1, 1, 1, 1.0)
    assert (report.nonfinite, report.applied, report.seconds > 0) == (0, True, True)
    # The loss is (x·w - y)² = 4, its gradient 2 (x·w - y) x = (4, 8).
    assert (report.loss, report.gradient_sum, report.gradient_max) == (4.0, 12.0, 8.0)
    assert report.gradient_norm == report.groups["all"].gradient_norm == pytest.approx(80**0.5)


def test_a_communicator_is_closed_when_its_block_ends_unless_something_was_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comm, closed = distgrad.connect("solo"), []
    monkeypatch.setattr(comm, "close", lambda: closed.append("closed"))
    with comm as entered:
        assert entered is comm
        assert not closed
    assert closed == ["closed"]
    with pytest.raises(ValueError, match="bad sample"), comm:
        raise ValueError("bad sample")
    assert closed == ["closed"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(distgrad, "averaged_gradients")
