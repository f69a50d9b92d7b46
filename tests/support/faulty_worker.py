"""A worker that trains until something happens to it: `faulty_worker.py FAULT`.

faults/inject.py says what must come of it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import distgrad
from support import memory_limit

STEPS = 10**6
FAULTY, AT = 1, 5  # the rank and the step at which it happens


def after(seconds: float, what: Callable[[], object]) -> None:
    threading.Timer(seconds, what).start()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loop() -> None:
    while True:
        pass


def raise_error() -> None:
    raise ValueError("bad sample in file 7")


def interrupt_twice() -> None:
    for seconds in (0.3, 0.8):
        after(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    after(0.8, lambda: os.write(1, b"now"))
    time.sleep(60)


def nothing() -> None:
    """From outside, or to the step's input, or nothing at all."""


FAULTS: dict[str, Callable[[], object]] = {
    "kill in a sum": lambda: after(0.5, kill),
    "kill": kill,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "loop": loop,
    "raise": raise_error,
    "_exit(0)": lambda: os._exit(0),
    "exit(3)": lambda: sys.exit(3),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "interrupt twice": interrupt_twice,
    "run out of memory": memory_limit.run_out_of_memory,
}


def main() -> None:
    fault = sys.argv[1]
    comm = distgrad.connect()
    import keras  # noqa: PLC0415 (which comes after connect)
    import numpy as np  # noqa: PLC0415

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    guards = {"check_every": 5, "max_skipped": 5}
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0, **guards)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    for number in range(STEPS):
        if number == AT:
            print(f"rank {comm.rank} process {os.getpid()} now", flush=True)
            comm.barrier()
            if comm.rank != FAULTY:
                time.sleep(1.5 if fault == "kill in a sum" else 0)
            elif fault == "return":
                return
            elif fault == "NaN":
                x[0, 0] = np.nan
            elif fault == "flip a bit":
                kernel = model.weights[0].numpy()
                kernel.view("int32")[2, 1] ^= 1 << 9
                model.weights[0].assign(kernel)
            else:
                FAULTS.get(fault, nothing)()
        step(x, y)


if __name__ == "__main__":
    main()
