"""What `distribute` and `fit` refuse, on every worker alike."""

from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from distgrad import Communicator
from distgrad.errors import FitMismatch, ForeignOptimizer, UnsupportedModel
from support.fits import line, numbers


class OwnFunction(keras.Sequential):
    def make_train_function(self, force: bool = False) -> Any:
        return super().make_train_function(force)


def test_what_cannot_be_distributed_is_refused(comm: Communicator) -> None:
    with pytest.raises(UnsupportedModel, match=r"has its own make_train_function\(\)"):
        distgrad.distribute(OwnFunction(), comm)
    model = line(comm)
    if comm.backend != "tf":
        used = keras.optimizers.SGD()
        used.build([keras.Variable(np.zeros(2))])
        model.compile(used, "mse")
        with pytest.raises(ForeignOptimizer, match="another model"):
            model.fit(*numbers(), verbose=0)


@pytest.mark.usefixtures("several_processes")
def test_workers_that_would_not_stay_together_are_found(comm: Communicator) -> None:
    callbacks = [keras.callbacks.EarlyStopping("loss")] if comm.is_root else []
    with pytest.raises(FitMismatch, match="callback=EarlyStopping"):
        line(comm).fit(*numbers(), callbacks=callbacks, verbose=0)
    with pytest.raises(FitMismatch, match="number of rows=8' on rank"):
        line(comm).fit(*numbers(12 if comm.is_root else 8), verbose=0)
