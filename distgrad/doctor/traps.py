"""What this Keras does by itself when an optimizer is applied within a strategy: three things to know, tried out.

distgrad does none of it: it applies outside the replicas, to the one gradient of the whole global batch. As a program,
`python -m distgrad.doctor.traps` tries them on two logical CPUs and prints a JSON object.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from distgrad.doctor.finding import NOTE, OK, PROBLEM, Failed, Finding, ask

CONSEQUENCES = {
    "clips before reducing": "a strategy clips each replica's gradient, not their sum; distgrad clips the sum",
    "fails to accumulate": "gradient_accumulation_steps fails under a strategy; use micro_batch_size",
    "disagrees on NaN": "one replica's NaN reaches all weights under a loss scale; distgrad skips that step everywhere",
}


def examine() -> Iterator[Finding]:
    """One finding a trap."""
    try:
        sprung = ask(["-m", "distgrad.doctor.traps"])
    except Failed as failure:
        yield Finding("Keras under a strategy", PROBLEM, f"could not be tried ({failure})", "see `distgrad env`")
        return
    for trap, consequence in CONSEQUENCES.items():
        found = consequence if sprung[trap] else "no"
        yield Finding(f"Keras {trap}", NOTE if sprung[trap] else OK, found)


def spring() -> dict[str, bool]:
    """Which traps this Keras has."""
    import keras  # noqa: PLC0415 (in the process of its own only)
    import tensorflow as tf  # noqa: PLC0415

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sgd = keras.optimizers.SGD
    clipped = _apply(lambda: sgd(1.0, global_clipnorm=1.0), [10.0, -9.0])
    accumulated = _apply(lambda: sgd(1.0, gradient_accumulation_steps=2), [1.0, 3.0])
    scaled = _apply(lambda: keras.optimizers.LossScaleOptimizer(sgd(1.0)), [1.0, math.nan])
    return {
        "clips before reducing": clipped != [-1.0, -1.0],  # the sum is 1, whose norm is not above 1
        "fails to accumulate": accumulated is None,
        "disagrees on NaN": scaled != [0.0, 0.0],  # the step should have been skipped
    }


def _apply(make: Callable[[], Any], gradients: list[float]) -> list[float] | None:
    """The weight on each of two replicas after one step from 0 with a gradient each; None if it raises."""
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        weight = keras.Variable(0.0)
        optimizer = make()
        optimizer.build([weight])

    def on_replica() -> None:
        own = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.gather(tf.constant(gradients), own)], [weight])

    try:
        tf.function(lambda: strategy.run(on_replica), autograph=False)()
    except (RuntimeError, ValueError):
        return None
    return [float(value) for value in weight.value.values]


if __name__ == "__main__":
    print(json.dumps(spring()))
