"""A worker whose root is busy in a callback of `fit`: `busy_worker.py works|stops`.

The others wait for at most T seconds for someone of whom they hear nothing. jobs/test_busy.py says what comes of it.
"""

import os
import signal
import sys
import time

import distgrad

T = 3.0


def work() -> None:
    """For longer than T, first without Python and then in it."""
    time.sleep(1.5 * T)
    end = time.monotonic() + 0.5 * T
    while time.monotonic() < end:
        pass


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    what = sys.argv[1]
    comm = distgrad.connect(timeout=T)
    import keras  # noqa: PLC0415 (which comes after connect)
    import numpy as np  # noqa: PLC0415

    class Busy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002
            if comm.is_root and epoch == 0:
                {"works": work, "stops": stop}[what]()

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    distgrad.distribute(model, comm)
    model.compile("sgd", "mse")
    x, y = np.ones((8, 3), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[Busy()])
    print("trained\n", end="", flush=True)


if __name__ == "__main__":
    main()
