"""What Keras does when an optimizer is applied within a strategy: three facts for which distgrad applies outside.

distgrad applies the optimizer once, in cross-replica context, to the gradient of the whole global batch. If one of
these tests fails, Keras has mended what it is about; then README.md and the design may be changed.
"""

import json
import math
import sys
from typing import TypeAlias

import pytest

from support.launching import run

# Prints the weight on each of two replicas after one step from 0 with a gradient each; the error's name if it raises.
PROGRAM = """
import json, math
import keras
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

def weights_after_a_step(make_optimizer, gradients):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        weight = keras.Variable(0.0)
        optimizer = make_optimizer()
        optimizer.build([weight])

    def on_replica():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.gather(tf.constant(gradients), replica)], [weight])

    try:
        tf.function(lambda: strategy.run(on_replica), autograph=False)()
    except (RuntimeError, ValueError) as error:
        return type(error).__name__
    return [float(value) for value in weight.value.values]

sgd = keras.optimizers.SGD
print(json.dumps({
    "clipping": weights_after_a_step(lambda: sgd(1.0, global_clipnorm=1.0), [10.0, -9.0]),
    "accumulation": weights_after_a_step(lambda: sgd(1.0, gradient_accumulation_steps=2), [1.0, 3.0]),
    "nan": weights_after_a_step(lambda: keras.optimizers.LossScaleOptimizer(sgd(1.0)), [1.0, math.nan]),
}))
"""
Facts: TypeAlias = dict[str, list[float] | str]


@pytest.fixture(scope="module")
def facts() -> Facts:
    job = run([sys.executable, "-c", PROGRAM])
    assert job.status == 0, job.err[-3000:]
    return json.loads(job.out.splitlines()[-1])


def test_keras_clips_each_replica_s_gradient_and_not_their_sum(facts: Facts) -> None:
    """The sum of 10 and -9 has norm 1 and needs no clipping: the weight should be -1."""
    assert facts["clipping"] == [0.0, 0.0]


def test_keras_cannot_accumulate_gradients_under_a_strategy(facts: Facts) -> None:
    assert facts["accumulation"] == "RuntimeError"


def test_keras_lets_one_replica_s_nan_into_the_weights_under_a_loss_scale(facts: Facts) -> None:
    """The step should be skipped on both."""
    assert all(math.isnan(weight) for weight in facts["nan"])
