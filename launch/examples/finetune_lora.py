"""Fine-tuning with LoRA: a classifier of upright digits learns to read them lying on their side.

    python launch/examples/finetune_lora.py                     alone
    distgrad run -np 2 launch/examples/finetune_lora.py         on two workers, with the same weights in the end

First all weights are trained on scikit-learn's digits, and with `shard_update` each worker keeps the optimizer's state
of its own slice of them alone. Then the hidden layers are frozen, and low-rank additions to them are trained
(`enable_lora`, Hu et al., 2021), of which there are few. The root prints what each part costs and brings.
"""

import argparse

import distgrad

comm = distgrad.connect()  # before TensorFlow is used

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

HELD_OUT = 360  # rows


def classifier(width: int) -> keras.Model:
    """A classifier of (b, 64) pixels with two hidden layers."""
    inputs = keras.Input((64,))
    hidden = layers.Dense(width, activation="relu", name="first")(inputs)
    hidden = layers.Dense(width, activation="relu", name="second")(hidden)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digits")(hidden))


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray, rate: float, epochs: int) -> float:
    """Train a model on all rows but the held-out ones, and return the accuracy on those."""
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:-HELD_OUT], y[:-HELD_OUT], batch_size=128, epochs=epochs, verbose=0)
    return accuracy(model, x, y)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return float(model.evaluate(x[-HELD_OUT:], y[-HELD_OUT:], verbose=0, return_dict=True)["accuracy"])


def say(what: str, model: keras.Model, reached: float) -> None:
    if comm.is_root:
        weights = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
        print(f"{what} | {weights} trained weights | accuracy {reached:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a classifier of digits with LoRA.")
    parser.add_argument("--width", type=int, default=512, help="units of a hidden layer")
    parser.add_argument("--rank", type=int, default=4, help="of the additions to a layer's weights")
    parser.add_argument("--epochs", type=int, default=8, help="of each of the two trainings")
    given = parser.parse_args()

    keras.utils.set_random_seed(0)
    upright = (load_digits().data / 16).astype("float32")
    lying = np.rot90(upright.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64).copy()
    y = load_digits().target

    with comm.scope():  # does nothing except under tf.distribute
        model = classifier(given.width)
    distgrad.distribute(model, comm, log_every=0, shard_update=True)
    say("upright", model, trained(model, upright, y, 1e-3, given.epochs))
    say("lying, before", model, accuracy(model, lying, y))

    for name in ("first", "second"):
        model.get_layer(name).enable_lora(given.rank)
    say("lying, after", model, trained(model, lying, y, 5e-3, given.epochs))
    comm.close()


if __name__ == "__main__":
    main()
