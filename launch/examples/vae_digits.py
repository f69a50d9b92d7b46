"""A variational autoencoder of handwritten digits, with a train_step of its own, which then draws digits of its own.

    python launch/examples/vae_digits.py                        alone
    distgrad run -np 2 launch/examples/vae_digits.py            on two workers, with the same global batches

The data are scikit-learn's, so nothing is downloaded. The model knows nothing of workers: one line distributes it. The
root prints the loss of every fifth epoch, and at the end some digits that the decoder makes of random numbers.
"""

import argparse
from typing import Any

import distgrad

comm = distgrad.connect()  # before TensorFlow is used

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers, ops  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

LATENT = 8  # numbers that stand for one picture
SHADES = " .:-=+*#%@"


class VariationalAutoencoder(keras.Model):
    """An encoder, a decoder, and the evidence lower bound that both are trained on (Kingma and Welling, 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(2 * LATENT)])
        self.decoder = keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(64)])
        self.noise = keras.random.SeedGenerator(0)
        self.loss_mean = keras.metrics.Mean(name="loss")

    def build(self, shape: Any) -> None:
        """Build both parts for rows of so many pixels."""
        self.encoder.build(shape)
        self.decoder.build((None, LATENT))
        self.built = True

    def train_step(self, pixels: tf.Tensor) -> dict[str, Any]:
        """Take one step on pixels, (b, 64) in 0..1."""
        with tf.GradientTape() as tape:
            mean, log_variance = ops.split(self.encoder(pixels), 2, axis=-1)
            drawn = mean + ops.exp(log_variance / 2) * keras.random.normal(ops.shape(mean), seed=self.noise)
            logits = self.decoder(drawn)
            # -log p(pixels | drawn), and KL(q(drawn | pixels) || N(0, 1)), of each row
            missed = ops.sum(ops.relu(logits) - logits * pixels + ops.log1p(ops.exp(-ops.abs(logits))), axis=-1)
            divergence = ops.sum(mean**2 + ops.exp(log_variance) - log_variance - 1, axis=-1) / 2
            loss = ops.mean(missed + divergence)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.loss_mean.update_state(loss, sample_weight=ops.shape(pixels)[0])
        return {"loss": self.loss_mean.result()}

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Return pictures that the decoder makes of random numbers, (count, 8, 8) in 0..1."""
        latent = np.random.default_rng(seed).normal(size=(count, LATENT)).astype("float32")
        return np.reshape(ops.sigmoid(self.decoder(latent)), (count, 8, 8))


def as_text(pictures: np.ndarray) -> str:
    """Return (count, 8, 8) pictures in 0..1 beside each other, two characters a pixel."""
    shades = np.clip((pictures * len(SHADES)).astype(int), 0, len(SHADES) - 1)
    lines = ["   ".join("".join(2 * SHADES[shade] for shade in row) for row in rows) for rows in shades.swapaxes(0, 1)]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a variational autoencoder of handwritten digits.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128, help="rows of the global batch, over all workers")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    keras.utils.set_random_seed(given.seed)
    pixels = (load_digits().data / 16).astype("float32")
    with comm.scope():  # does nothing except under tf.distribute
        model = VariationalAutoencoder()
    distgrad.distribute(model, comm, log_every=0)
    model.compile(keras.optimizers.Adam(3e-3))
    losses = model.fit(pixels, batch_size=given.batch_size, epochs=given.epochs, verbose=0).history["loss"]
    if comm.is_root:
        for epoch in range(4, given.epochs, 5):
            print(f"epoch {epoch + 1} | loss {losses[epoch]:.3f}", flush=True)
        print(f"loss {losses[-1]:.3f} on {comm.size} workers; four digits that nobody wrote:", flush=True)
        print(as_text(model.draw(4, given.seed)), flush=True)
    comm.close()


if __name__ == "__main__":
    main()
