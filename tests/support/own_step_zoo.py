"""Models with a `train_step` of their own, or another of the methods that Keras lets users override, small, with data.

They are built like those of keras.io's guides. None draws random numbers while it is trained: noise and coefficients
come with the data, so that Keras in one process meets the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

ROWS, BATCH = 24, 10  # the last of three batches is short


class OwnStep(NamedTuple):
    """A model, and what it is compiled and trained with.

    Attributes:
        build: nothing -> the model, with all variables that it is to have.
        compile: the model -> None; models have arguments of their own.
        x, y: the data; y may be None.
        fit: further arguments of fit.
        validates: True if it can be evaluated.
        looks_at_all_rows: True if a loss depends on all rows of the batch together.
        tolerance: of weights and logs.
    """

    build: Callable[[], Any]
    compile: Callable[[Any], None]
    x: Any
    y: Any = None
    fit: dict[str, Any] = {}  # noqa: RUF012
    validates: bool = False
    looks_at_all_rows: bool = False
    tolerance: float = 1e-5


RNG = np.random.default_rng(29)


def reals(*shape: int) -> np.ndarray:
    return RNG.normal(size=(ROWS, *shape)).astype("float32")


def uniform(*shape: int) -> np.ndarray:
    return RNG.uniform(size=(ROWS, *shape)).astype("float32")


def ids(below: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, below, (ROWS, *shape)).astype("int32")


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


def adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.01, epsilon=1e-2)  # which does not magnify what float32 rounds off


def network(inputs: int, *units: int, last: str | None = None) -> keras.Model:
    """Dense layers."""
    hidden = [layers.Dense(width, "tanh") for width in units[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(units[-1], last)])


def update(optimizer: Any, tape: tf.GradientTape, loss: Any, variables: Any) -> None:
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def rows_of(tensor: Any) -> Any:
    return ops.shape(tensor)[0]


SPARSE = keras.losses.SparseCategoricalCrossentropy
LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)


# ---- autoencoders


class VariationalAutoencoder(keras.Model):
    """Encoder, decoder and three trackers; the rows come as a dict with their noise."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = network(6, 8, 4), network(2, 8, 6)
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "reconstruction", "divergence")]

    @property
    def metrics(self) -> list[keras.Metric]:
        return self.trackers

    def terms(self, data: Any) -> tuple[Any, Any, Any]:
        mean, spread = ops.split(self.encoder(data["row"]), 2, axis=-1)
        rebuilt = self.decoder(mean + ops.exp(0.5 * spread) * data["noise"])
        reconstruction = ops.mean(ops.sum(ops.square(data["row"] - rebuilt), axis=-1))
        divergence = 0.5 * ops.mean(ops.sum(ops.square(mean) + ops.exp(spread) - spread - 1, axis=-1))
        return reconstruction + divergence, reconstruction, divergence

    def track(self, terms: tuple[Any, ...], data: Any) -> dict[str, Any]:
        for tracker, term in zip(self.trackers, terms, strict=True):
            tracker.update_state(term, rows_of(data["row"]))
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            terms = self.terms(data)
        update(self.optimizer, tape, terms[0], self.trainable_weights)
        return self.track(terms, data)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.track(self.terms(data), data)


class Codebook(layers.Layer):
    """Each vector -> the nearest of a few, through which gradients pass straight."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = self.add_weight(shape=(4, 3), initializer="random_normal", name="codes")

    def call(self, vectors: Any) -> Any:
        apart = ops.sum(ops.square(vectors[:, None] - self.codes[None]), axis=-1)
        nearest = ops.matmul(ops.one_hot(ops.argmin(apart, axis=-1), 4), self.codes)
        self.add_loss(0.25 * ops.mean(ops.square(ops.stop_gradient(nearest) - vectors)))
        self.add_loss(ops.mean(ops.square(nearest - ops.stop_gradient(vectors))))
        return vectors + ops.stop_gradient(nearest - vectors)


class QuantisedAutoencoder(keras.Model):
    """VQ-VAE: the losses of its codebook are those that a layer adds; its logs are results of trackers."""

    def __init__(self) -> None:
        super().__init__()
        row = keras.Input((6,))
        self.whole = keras.Model(row, layers.Dense(6)(Codebook()(layers.Dense(3)(row))))
        self.total, self.codes = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="codebook_loss")

    def train_step(self, row: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            rebuilt = self.whole(row, training=True)
            added = sum(self.whole.losses)
            loss = ops.mean(ops.square(row - rebuilt)) / 1.7 + added
        update(self.optimizer, tape, loss, self.whole.trainable_variables)
        self.total.update_state(loss, sample_weight=rows_of(row))
        self.codes.update_state(added, sample_weight=rows_of(row))
        return {"loss": self.total.result(), "codebook_loss": self.codes.result()}


# ---- adversaries


class Adversaries(keras.Model):
    """DCGAN: a discriminator and a generator, each with its optimizer; the noise comes with the rows."""

    def __init__(self, generator: keras.Model, discriminator: keras.Model) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.d_loss, self.g_loss = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.d_loss, self.g_loss]

    def train_step(self, data: Any) -> dict[str, Any]:
        real, noise = data
        rows = rows_of(real)
        mixed = ops.concatenate([self.generator(noise), real], axis=0)
        labels = ops.concatenate([ops.ones((rows, 1)), 0.1 * ops.ones((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(mixed))
        update(self.d_optimizer, tape, d_loss, self.discriminator.trainable_weights)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(ops.zeros((rows, 1)), self.discriminator(self.generator(noise)))
        update(self.g_optimizer, tape, g_loss, self.generator.trainable_weights)
        self.d_loss.update_state(d_loss)  # a mean of means of batches, whatever their rows
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


class Conditional(Adversaries):
    """What is to be drawn is given to both, one-hot; data are a dict of three."""

    def train_step(self, data: Any) -> dict[str, Any]:
        real, kind, noise = data["real"], data["kind"], data["noise"]
        rows, seed = rows_of(real), ops.concatenate([noise, kind], axis=-1)
        drawn = ops.concatenate([self.generator(seed), kind], axis=-1)
        true = ops.concatenate([real, kind], axis=-1)
        with tf.GradientTape() as tape:
            said = self.discriminator(ops.concatenate([drawn, true], axis=0))
            d_loss = self.loss_fn(ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0), said)
        update(self.d_optimizer, tape, d_loss, self.discriminator.trainable_weights)
        with tf.GradientTape() as tape:
            drawn = ops.concatenate([self.generator(seed), kind], axis=-1)
            g_loss = self.loss_fn(ops.zeros((rows, 1)), self.discriminator(drawn))
        update(self.g_optimizer, tape, g_loss, self.generator.trainable_weights)
        self.d_loss.update_state(d_loss, rows)
        self.g_loss.update_state(g_loss, rows)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


class Wasserstein(keras.Model):
    """WGAN-GP: the critic takes three steps to the generator's one, with a penalty on its gradients.

    Its logs are the losses of the last batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = network(3, 8, 4), network(4, 8, 1)

    def compile(self, d_optimizer: Any, g_optimizer: Any, d_loss_fn: Any, g_loss_fn: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.d_loss_fn, self.g_loss_fn = d_loss_fn, g_loss_fn

    def penalty(self, real: Any, fake: Any, between: Any) -> Any:
        mixed = real + between * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(mixed)
            said = self.critic(mixed, training=True)
        slopes = tape.gradient(said, [mixed])[0]
        return ops.mean(ops.square(ops.sqrt(ops.sum(ops.square(slopes), axis=1) + 1e-6) - 1.0))

    def train_step(self, data: Any) -> dict[str, Any]:
        real, (noise, between) = data
        for turn in range(3):
            with tf.GradientTape() as tape:
                fake = self.generator(noise[:, turn], training=True)
                cost = self.d_loss_fn(self.critic(real, training=True), self.critic(fake, training=True))
                penalty = self.penalty(real, fake, between[:, turn])
                d_loss = cost + 10.0 * penalty
            update(self.d_optimizer, tape, d_loss, self.critic.trainable_variables)
        with tf.GradientTape() as tape:
            g_loss = self.g_loss_fn(self.critic(self.generator(noise[:, 3], training=True), training=True))
        update(self.g_optimizer, tape, g_loss, self.generator.trainable_variables)
        return {"d_loss": d_loss, "g_loss": g_loss, "penalty": penalty}


class Cycle(keras.Model):
    """CycleGAN: two generators and two discriminators, four optimizers, one tape that is read four times."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = network(4, 6, 4), network(4, 6, 4)
        self.judge_there, self.judge_back = network(4, 6, 1), network(4, 6, 1)

    def compile(self, optimizers: dict[str, Any]) -> None:
        super().compile()
        self.there_optimizer, self.back_optimizer = optimizers["there"], optimizers["back"]
        self.judge_there_optimizer, self.judge_back_optimizer = optimizers["judge_there"], optimizers["judge_back"]

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        square, absolute = keras.losses.MeanSquaredError(), keras.losses.MeanAbsoluteError()
        with tf.GradientTape(persistent=True) as tape:
            fake_y, fake_x = self.there(x, training=True), self.back(y, training=True)
            again_x, again_y = self.back(fake_y, training=True), self.there(fake_x, training=True)
            said_x, said_y = self.judge_back(x), self.judge_there(y)
            false_x, false_y = self.judge_back(fake_x), self.judge_there(fake_y)
            there_loss = square(ops.ones_like(false_y), false_y) + 10.0 * absolute(y, again_y)
            there_loss += 5.0 * absolute(y, self.there(y, training=True))
            back_loss = square(ops.ones_like(false_x), false_x) + 10.0 * absolute(x, again_x)
            back_loss += 5.0 * absolute(x, self.back(x, training=True))
            d_back = 0.5 * (square(ops.ones_like(said_x), said_x) + square(ops.zeros_like(false_x), false_x))
            d_there = 0.5 * (square(ops.ones_like(said_y), said_y) + square(ops.zeros_like(false_y), false_y))
        update(self.there_optimizer, tape, there_loss, self.there.trainable_variables)
        update(self.back_optimizer, tape, back_loss, self.back.trainable_variables)
        update(self.judge_back_optimizer, tape, d_back, self.judge_back.trainable_variables)
        update(self.judge_there_optimizer, tape, d_there, self.judge_there.trainable_variables)
        return {"there_loss": there_loss, "back_loss": back_loss, "d_back": d_back, "d_there": d_there}


# ---- diffusion


class Diffusion(keras.Model):
    """DDIM: a network that finds the noise in rows, and a copy of it whose weights follow slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer = layers.Normalization(axis=-1, mean=[0.1] * 4, variance=[1.2] * 4)
        self.normalizer.build((None, 4))
        self.network = network(5, 8, 4)
        self.slow_network = keras.models.clone_model(self.network)
        self.slow_network.set_weights(self.network.get_weights())

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.noise_tracker, self.row_tracker = keras.metrics.Mean(name="n_loss"), keras.metrics.Mean(name="i_loss")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.noise_tracker, self.row_tracker]

    def denoise(self, data: Any, network: Any, training: bool) -> tuple[Any, Any, Any, Any]:
        rows, noise = self.normalizer(data["row"], training=training), data["noise"]
        angle = 0.2 + 1.2 * data["time"]
        signal_rate, noise_rate = ops.cos(angle), ops.sin(angle)
        noisy = signal_rate * rows + noise_rate * noise
        found = network(ops.concatenate([noisy, ops.square(noise_rate)], axis=-1), training=training)
        return rows, (noisy - noise_rate * found) / signal_rate, noise, found

    def track(self, noise_loss: Any, row_loss: Any, rows: Any) -> dict[str, Any]:
        self.noise_tracker.update_state(noise_loss, rows_of(rows))
        self.row_tracker.update_state(row_loss, rows_of(rows))
        return {metric.name: metric.result() for metric in self.metrics}

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            rows, found_rows, noise, found_noise = self.denoise(data, self.network, training=True)
            noise_loss, row_loss = self.loss(noise, found_noise), self.loss(rows, found_rows)
        gradients = tape.gradient(noise_loss, self.network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights, strict=True))
        logs = self.track(noise_loss, row_loss, rows)
        for weight, slow in zip(self.network.weights, self.slow_network.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        rows, found_rows, noise, found_noise = self.denoise(data, self.slow_network, training=False)
        return self.track(self.loss(noise, found_noise), self.loss(rows, found_rows), rows)


# ---- learning from rows alone


def unit(vectors: Any) -> Any:
    return vectors / ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True) + 1e-6)


class Siamese(keras.Model):
    """SimSiam: two views of a row, of which each is to tell the other, which has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = network(5, 8, 4), network(4, 3, 4)
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.tracker]

    def train_step(self, data: Any) -> dict[str, Any]:
        one, two = data

        def unlike(predicted: Any, target: Any) -> Any:
            return -ops.mean(ops.sum(unit(predicted) * unit(ops.stop_gradient(target)), axis=1))

        with tf.GradientTape() as tape:
            z1, z2 = self.encoder(one, training=True), self.encoder(two, training=True)
            loss = 0.5 * unlike(self.predictor(z1), z2) + 0.5 * unlike(self.predictor(z2), z1)
        learned = self.encoder.trainable_variables + self.predictor.trainable_variables
        update(self.optimizer, tape, loss, learned)
        self.tracker.update_state(loss, rows_of(one))
        return {"loss": self.tracker.result()}


class Contrast(keras.Model):
    """SimCLR: each row is to be told from all others of the batch, and a probe learns beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.probe = network(5, 8, 4), network(4, 4, 3), network(4, 3)

    def compile(self, contrastive_optimizer: Any, probe_optimizer: Any) -> None:
        super().compile()
        self.contrastive_optimizer, self.probe_optimizer = contrastive_optimizer, probe_optimizer
        self.loss_of_probe = SPARSE(from_logits=True)
        self.c_loss, self.hits = keras.metrics.Mean(name="c_loss"), keras.metrics.SparseCategoricalAccuracy(name="hits")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.c_loss, self.hits]

    def train_step(self, data: Any) -> dict[str, Any]:
        (one, two), labels = data
        with tf.GradientTape() as tape:
            like = ops.matmul(unit(self.head(self.encoder(one))), ops.transpose(unit(self.head(self.encoder(two)))))
            places = ops.arange(rows_of(one))
            logits = [like / 0.5, ops.transpose(like) / 0.5]
            loss = sum(
                ops.mean(keras.losses.sparse_categorical_crossentropy(places, each, from_logits=True))
                for each in logits
            )
        update(self.contrastive_optimizer, tape, loss, self.encoder.trainable_weights + self.head.trainable_weights)
        self.c_loss.update_state(loss, rows_of(one))
        with tf.GradientTape() as tape:
            said = self.probe(self.encoder(one, training=False))
            probe_loss = self.loss_of_probe(labels, said)
        update(self.probe_optimizer, tape, probe_loss, self.probe.trainable_weights)
        self.hits.update_state(labels, said)
        return {metric.name: metric.result() for metric in self.metrics}


# ---- teachers, texts, pictures, graphs


class Distiller(keras.Model):
    """A student that is compiled with metrics, and a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = network(5, 8, 3), network(5, 4, 3)
        self.teacher.trainable = False

    def compile(self, optimizer: Any, metrics: Any, alpha: float, temperature: float) -> None:
        super().compile(optimizer=optimizer, metrics=metrics)
        self.alpha, self.temperature = alpha, temperature
        self.student_loss_fn, self.distillation_loss_fn = SPARSE(from_logits=True), keras.losses.KLDivergence()

    def call(self, x: Any) -> Any:
        return self.student(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        taught = self.teacher(x, training=False)
        with tf.GradientTape() as tape:
            said = self.student(x, training=True)
            student_loss = self.student_loss_fn(y, said)
            soft = [ops.softmax(logits / self.temperature, axis=1) for logits in (taught, said)]
            distillation_loss = self.distillation_loss_fn(*soft) * self.temperature**2
            loss = self.alpha * student_loss + (1 - self.alpha) * distillation_loss
        update(self.optimizer, tape, loss, self.student.trainable_variables)
        results = self.compute_metrics(x, y, said, None)
        return results | {"student_loss": student_loss, "distillation_loss": distillation_loss}

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        said = self.student(x, training=False)
        return self.compute_metrics(x, y, said, None) | {"student_loss": self.student_loss_fn(y, said)}


class MaskedWords(keras.Model):
    """BERT: the loss of each word, weighted by a mask, is a vector, whose gradient is that of its sum."""

    def __init__(self) -> None:
        super().__init__()
        words = keras.Input((5,), dtype="int32")
        x = layers.Embedding(11, 6)(words)
        self.whole = keras.Model(words, layers.Dense(11)(layers.LayerNormalization()(layers.Dense(6, "tanh")(x))))
        self.loss_fn = SPARSE(from_logits=True, reduction=None)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.loss_tracker]

    def call(self, words: Any) -> Any:
        return self.whole(words)

    def train_step(self, inputs: Any) -> dict[str, Any]:
        words, labels, mask = inputs
        with tf.GradientTape() as tape:
            loss = self.loss_fn(labels, self(words, training=True), sample_weight=mask)
        update(self.optimizer, tape, loss, self.trainable_variables)
        self.loss_tracker.update_state(loss, sample_weight=mask)
        return {"loss": self.loss_tracker.result()}


class Captions(keras.Model):
    """Three captions of each picture, with one step for all or one after each; each masks equally many words."""

    def __init__(self, steps_at_once: bool) -> None:
        super().__init__()
        self.steps_at_once = steps_at_once
        self.eye, self.words, self.out = layers.Dense(6, "tanh"), layers.Embedding(9, 6), layers.Dense(9)
        self.eye.build((None, 7))
        self.words.build((None, 4))
        self.out.build((None, 4, 6))
        self.loss_tracker, self.hits = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="acc")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.loss_tracker, self.hits]

    def compile(self, optimizer: Any, loss: Any) -> None:
        super().compile(optimizer=optimizer, loss=loss)

    def of_caption(self, seen: Any, caption: Any) -> tuple[Any, Any]:
        given, wanted = caption[:, :-1], caption[:, 1:]
        mask = ops.cast(ops.not_equal(wanted, 0), "float32")
        said = self.out(self.words(given) + seen[:, None])
        loss = ops.sum(self.loss(wanted, said) * mask) / ops.sum(mask)
        hits = ops.cast(ops.equal(wanted, ops.cast(ops.argmax(said, axis=2), wanted.dtype)), "float32") * mask
        return loss, ops.sum(hits) / ops.sum(mask)

    def train_step(self, data: Any) -> dict[str, Any]:
        picture, captions = data
        total = hits = 0.0
        if self.steps_at_once:
            for number in range(3):
                with tf.GradientTape() as tape:
                    loss, acc = self.of_caption(self.eye(picture), captions[:, number])
                update(self.optimizer, tape, loss, self.trainable_variables)
                total, hits = total + loss, hits + acc / 3
        else:
            with tf.GradientTape() as tape:
                seen = self.eye(picture)
                for number in range(3):
                    loss, acc = self.of_caption(seen, captions[:, number])
                    total, hits = total + loss, hits + acc / 3
            update(self.optimizer, tape, total, self.trainable_variables)
        self.loss_tracker.update_state(total)
        self.hits.update_state(hits)
        return {"loss": self.loss_tracker.result(), "acc": self.hits.result()}

    def test_step(self, data: Any) -> dict[str, Any]:
        picture, captions = data
        total = hits = 0.0
        for number in range(3):
            loss, acc = self.of_caption(self.eye(picture), captions[:, number])
            total, hits = total + loss, hits + acc / 3
        self.loss_tracker.update_state(total)
        self.hits.update_state(hits)
        return {"loss": self.loss_tracker.result(), "acc": self.hits.result()}


class GraphAttention(keras.Model):
    """All nodes of one graph are looked at in each step, of which a batch names some."""

    def __init__(self, nodes: np.ndarray, edges: np.ndarray) -> None:
        super().__init__()
        self.nodes, self.adjacency = nodes, edges
        self.first, self.score, self.out = network(4, 6), network(12, 1), network(6, 3)

    def call(self, nodes: Any) -> Any:
        x = self.first(nodes)
        sender = ops.repeat(x[None], 8, axis=0)
        pairs = ops.reshape(ops.concatenate([ops.transpose(sender, (1, 0, 2)), sender], axis=-1), (-1, 12))
        scores = ops.reshape(ops.leaky_relu(self.score(pairs)), (8, 8))
        attention = ops.softmax(scores + 1e4 * (ops.convert_to_tensor(self.adjacency) - 1.0), axis=-1)
        return self.out(ops.tanh(ops.matmul(attention, x)))

    def train_step(self, data: Any) -> dict[str, Any]:
        places, labels = data
        with tf.GradientTape() as tape:
            said = ops.take(self(self.nodes, training=True), places, axis=0)
            loss = self.compute_loss(y=labels, y_pred=said)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=rows_of(places))
            else:
                metric.update_state(labels, said)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        places, labels = data
        said = ops.take(self(self.nodes, training=False), places, axis=0)
        return self.compute_metrics(None, labels, said, None) | {"val": self.compute_loss(y=labels, y_pred=said)}


# ---- one method of one's own


class Sized(keras.Model):
    """Only adds to what Keras's own step logs."""

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        logs["size"] = sum(ops.sum(ops.square(weight)) for weight in self.trainable_weights)
        logs["rate"] = self.optimizer.learning_rate
        return logs


class Tested(keras.Model):
    """Only a `test_step` of its own."""

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        said = self(x, training=False)
        logs = self.compute_metrics(x, y, said)
        logs["error"] = ops.mean(ops.abs(y - said))
        logs["count"] = ops.cast(rows_of(x), "float32")
        return logs


class Lost(keras.Model):
    """Only a `compute_loss` of its own, with a tracker, and regularization that it adds by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = keras.metrics.Mean(name="plain")

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:  # noqa: ARG002
        loss = ops.mean(ops.square(y_pred - y) * (1.0 if sample_weight is None else sample_weight[:, None]))
        self.plain.update_state(loss, rows_of(y))
        return loss + sum(self.losses)

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.plain]


class Measured(keras.Model):
    """Only a `compute_metrics` of its own, which adds keys."""

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        results["twice_mae"] = 2.0 * results["mae"]
        results["target"] = ops.mean(y)
        return results


class Weighted(keras.Model):
    """Sample weights, what layers add, compiled metrics: all that Keras's guide to `train_step` shows."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = data
        with tf.GradientTape() as tape:
            said = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=said, sample_weight=sample_weight)
        update(self.optimizer, tape, loss, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=rows_of(x))
            else:
                metric.update_state(y, said, sample_weight=sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}


class NotBuilt(keras.Model):
    """Creates its variables in its first step. Keras gives it a pair of inputs without a target as `((x1, x2),)`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(4, "tanh"), layers.Dense(4, "tanh")

    def train_step(self, data: Any) -> dict[str, Any]:
        ((left, right),) = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(self.left(left) - self.right(right) - 1.0))
        update(self.optimizer, tape, loss, self.trainable_variables)
        return {"apart": loss}


class Counted(keras.Model):
    """Keeps states of its own: a number of steps, rows seen, and a mean of the rows that follows slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(4, 4, 1)
        self.steps = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="steps")
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")
        self.center = self.add_weight(shape=(4,), initializer="zeros", trainable=False, name="center")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.sum(ops.square(y - self.inner(x - self.center)))  # a sum, not a mean
        update(self.optimizer, tape, loss, self.inner.trainable_variables)
        self.steps.assign_add(1)
        self.seen.assign(self.seen + ops.cast(rows_of(x), "float32"))
        self.center.assign(0.8 * self.center + 0.2 * ops.mean(x, axis=0))
        return {"loss": loss, "seen": self.seen, "steps": self.steps, "middle": ops.sum(self.center)}


def functional(kind: type[keras.Model], regularizer: Any = None) -> keras.Model:
    x = keras.Input((5,))
    hidden = layers.Dense(6, "tanh", kernel_regularizer=regularizer)(x)
    return kind(x, layers.Dense(2)(hidden))


def one_hot(numbers: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size, dtype="float32")[numbers]


def masked_words() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, mask = ids(11, 5), (uniform(5) < 0.4).astype("float32")
    return np.where(mask > 0, 10, labels), labels, mask


def captions() -> np.ndarray:
    found = RNG.integers(1, 9, (ROWS, 3, 5)).astype("int32")
    found[:, :, -1] = 0
    return found


def graph() -> keras.Model:
    rng = np.random.default_rng(31)
    edges = (rng.uniform(size=(8, 8)) < 0.4).astype("float32")
    return GraphAttention(rng.normal(size=(8, 4)).astype("float32"), np.maximum(edges, np.eye(8, dtype="float32")))


def two_optimizers(model: Any) -> None:
    model.compile(keras.optimizers.SGD(0.05, momentum=0.5), keras.optimizers.SGD(0.02, momentum=0.5), LOGITS)


OWN_STEPS = {
    "VAE": OwnStep(
        VariationalAutoencoder,
        lambda model: model.compile(keras.optimizers.Adam(0.01, epsilon=1e-2, global_clipnorm=1.0)),
        {"row": reals(6), "noise": reals(2)},
        validates=True,
    ),
    "VQ-VAE": OwnStep(QuantisedAutoencoder, lambda model: model.compile(adam()), reals(6)),
    "DCGAN": OwnStep(lambda: Adversaries(network(3, 8, 4), network(4, 8, 1)), two_optimizers, reals(4), reals(3)),
    "conditional GAN": OwnStep(
        lambda: Conditional(network(5, 8, 4), network(6, 8, 1)),
        two_optimizers,
        {"real": reals(4), "kind": one_hot(ids(2), 2), "noise": reals(3)},
    ),
    "WGAN-GP": OwnStep(
        Wasserstein,
        lambda model: model.compile(
            adam(),
            adam(),
            lambda real, fake: ops.mean(fake) - ops.mean(real),
            lambda fake: -ops.mean(fake),
        ),
        reals(4),
        (reals(4, 3), uniform(3, 1)),
    ),
    "CycleGAN": OwnStep(
        Cycle,
        lambda model: model.compile({name: sgd() for name in ("there", "back", "judge_there", "judge_back")}),
        reals(4),
        reals(4),
    ),
    "DDIM": OwnStep(
        Diffusion,
        lambda model: model.compile(
            optimizer=keras.optimizers.AdamW(0.01, epsilon=1e-2, weight_decay=1e-2),
            loss=keras.losses.MeanSquaredError(),
        ),
        {"row": reals(4), "noise": reals(4), "time": uniform(1)},
        validates=True,
    ),
    "SimSiam": OwnStep(Siamese, lambda model: model.compile(sgd()), reals(5), reals(5)),
    "SimCLR": OwnStep(
        Contrast,
        lambda model: model.compile(adam(), adam()),
        (reals(5), reals(5)),
        ids(3),
        looks_at_all_rows=True,
    ),
    "distillation": OwnStep(
        Distiller,
        lambda model: model.compile(
            optimizer=sgd(), metrics=[keras.metrics.SparseCategoricalAccuracy(name="hits")], alpha=0.3, temperature=4.0
        ),
        reals(5),
        ids(3),
        validates=True,
    ),
    "masked words": OwnStep(
        MaskedWords,
        lambda model: model.compile(keras.optimizers.SGD(0.01, momentum=0.9)),
        (words := masked_words())[0],
        words[1],
        {"sample_weight": words[2]},
    ),
    "captions": OwnStep(
        lambda: Captions(steps_at_once=False),
        lambda model: model.compile(sgd(), SPARSE(from_logits=True, reduction=None)),
        reals(7),
        captions(),
        validates=True,
    ),
    "captions, one step each": OwnStep(
        lambda: Captions(steps_at_once=True),
        lambda model: model.compile(sgd(), SPARSE(from_logits=True, reduction=None)),
        reals(7),
        captions(),
        validates=True,
    ),
    "graph attention": OwnStep(
        graph,
        lambda model: model.compile(
            loss=SPARSE(from_logits=True),
            optimizer=sgd(),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")],
        ),
        ids(8),
        ids(3),
        validates=True,
    ),
    "super().train_step": OwnStep(
        lambda: functional(Sized, "l2"),
        lambda model: model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5), epsilon=1e-2),
            "mse",
            metrics=["mae"],
        ),
        reals(5),
        reals(2),
        validates=True,
    ),
    "test_step": OwnStep(
        lambda: functional(Tested),
        lambda model: model.compile(sgd(), "mse", metrics=["mae"]),
        reals(5),
        reals(2),
        validates=True,
    ),
    "compute_loss": OwnStep(
        lambda: functional(Lost, "l2"),
        lambda model: model.compile(sgd()),
        reals(5),
        reals(2),
        {"sample_weight": uniform()},
        validates=True,
    ),
    "compute_metrics": OwnStep(
        lambda: functional(Measured),
        lambda model: model.compile(sgd(), "mse", metrics=["mae"]),
        reals(5),
        reals(2),
        validates=True,
    ),
    "weighted": OwnStep(
        lambda: functional(Weighted, "l1"),
        lambda model: model.compile(adam(), "mse", metrics=[keras.metrics.MeanAbsoluteError(name="mae")]),
        reals(5),
        reals(2),
        {"sample_weight": uniform()},
    ),
    "not built": OwnStep(NotBuilt, lambda model: model.compile(sgd()), (reals(5), reals(3))),
    "states": OwnStep(Counted, lambda model: model.compile(keras.optimizers.SGD(0.01)), reals(4), reals(1)),
}
