"""An existing Keras model in the distributed step: the lines marked with # 1 to # 4 are all that is new.

python launch/examples/wrap_existing.py                     alone
distgrad run -np 2 launch/examples/wrap_existing.py         on two workers, with the same weights in the end
"""

import distgrad

comm = distgrad.connect()  # 1: before TensorFlow is used

import keras  # noqa: E402
import numpy as np  # noqa: E402


def existing_model() -> keras.Model:
    """Somebody's model, as it was."""
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    hidden = keras.layers.LayerNormalization()(hidden)
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


rng = np.random.default_rng(0)
x = rng.normal(size=(4096, 16)).astype("float32")
y = np.sin(x).sum(axis=1, keepdims=True)

keras.utils.set_random_seed(0)
with comm.scope():  # 2: does nothing except under tf.distribute
    model = existing_model()
distgrad.distribute(model, comm, micro_batch_size=64)  # 3

model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0), "mse")
history = model.fit(x, y, batch_size=256, epochs=5, verbose=0)
if comm.is_root:
    print(f"loss {history.history['loss'][-1]:.6f} on {comm.size} workers", flush=True)
comm.close()  # 4
