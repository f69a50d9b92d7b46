"""When and where a model is built."""

import keras
import numpy as np
import pytest

from distgrad import Communicator
from distgrad.errors import BadArgument
from support.step_zoo import ROWS
from support.steps import integers, linear, own, quiet


def test_an_unbuilt_model_is_built(comm: Communicator) -> None:
    with comm.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
    report = quiet(comm, model, "mse")(*own(comm, (np.ones((ROWS, 3), "float32"), np.ones((ROWS, 2), "float32"))))
    assert report.applied
    assert model.count_params() == 8


def test_where_a_model_must_be_built(comm: Communicator) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    if comm.backend == "tf":
        with pytest.raises(BadArgument, match=r"dense\w*/kernel was built outside comm.scope"):
            quiet(comm, model)
    else:
        assert quiet(comm, model)(*own(comm, integers())).applied


def test_only_building_belongs_into_the_scope(comm: Communicator) -> None:
    step, batch = quiet(comm, linear(comm)), own(comm, integers())
    with comm.scope():
        if comm.backend == "tf":
            with pytest.raises(BadArgument, match=r"within comm.scope\(\); build the model in there"):
                step(*batch)
        else:
            step(*batch)
    assert step(*batch).applied
