"""Errors as a program meets them: their form, and arguments that are wrong."""

from pathlib import Path

import keras
import numpy as np
import pytest

import distgrad
from distgrad import native
from distgrad.errors import BadArgument, EngineMissing
from support.lines import ERROR


def test_wrong_arguments_are_named_before_anything_is_sent() -> None:
    comm = distgrad.connect("solo")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    wrong = {
        "micro_batch_size": 0,
        "reduction": "average",
        "on_nonfinite": "ignore",
        "log_format": "xml",
        "log_every": -1,
        "groups": {"a": "("},
    }
    for name, value in wrong.items():
        with pytest.raises(BadArgument) as caught:
            distgrad.DistributedStep(model, "mse", "sgd", comm=comm, **{name: value})
        assert (caught.value.status, name.rstrip("s") in str(caught.value)) == (64, True)
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm)
    with pytest.raises(BadArgument, match=r"the parts of a batch have \[4, 3\] rows"):
        step(np.ones((4, 3)), np.ones(3))
    with pytest.raises(BadArgument, match="no batch at all"):
        next(step.epoch(iter([])))


def test_the_form_of_the_line() -> None:
    text = str(BadArgument("cause", "what to do", rank=3, step=7))
    assert text == "distgrad: error[DG002] rank=3 step=7: cause; what to do"
    assert ERROR.fullmatch(text)


def test_a_missing_core_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(EngineMissing, match="compiled core is missing; install distgrad with pip"):
        native._library()
