"""What every worker must call, called on one alone in a callback: one line names the call, on every engine."""

import pytest

from support.launching import launch, needs_horovod, program

ALONE = """
    import sys
    import distgrad
    comm = distgrad.connect()
    import keras, numpy as np

    class Alone(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if comm.rank == 1:
                self.model.evaluate(x, y, verbose=0) if sys.argv[1] == "evaluate" else self.model.fit(x, y, verbose=0)

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    distgrad.distribute(model, comm)
    model.compile("sgd", "mse")
    x, y = np.ones((8, 3), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[Alone()])
"""


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    ("engine", "call"),
    [
        ("mpi", "evaluate"),
        pytest.param("mpi", "fit", marks=pytest.mark.thorough),
        pytest.param("horovod-gloo", "evaluate", marks=[needs_horovod, pytest.mark.thorough]),
        pytest.param("mwms", "evaluate", marks=pytest.mark.thorough),
    ],
)
def test_a_call_on_one_worker_is_named(engine: str, call: str) -> None:
    jobs = launch(engine, 2, [*program(ALONE), call])
    errors = "".join(job.err for job in jobs)
    said = f"distgrad: error[DG044] rank=- step=-: a step on rank 0, {call}() on rank 1; call {call}() on every worker"
    assert errors.count("distgrad: error[") == errors.count(said) == 1, errors
    assert all(job.status for job in jobs)
    assert "OpError" not in errors
