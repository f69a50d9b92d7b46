"""Vectors to sum, examples to train on, first weights, and the checks of the results. NumPy only."""

from collections.abc import Sequence

import numpy as np

from distgrad.bench.cases import EMBEDDINGS, SUM_BYTES, TENSORS, WITH_ADAM

PERIOD = 1000  # entries after which a vector repeats
MICRO_BATCH, MICRO_BATCHES = 32, 4  # rows, and how many of them a step
LEARNING_RATE = 0.01
# Of the MLPs.
HIDDEN_UNITS = {"small": [128] * 2, "deep": [64] * 50, "wide": [2048] * 2, WITH_ADAM: [2048] * 2}
HIDDEN_UNITS |= {"MLP 64": [128] * 2, "MLP 512": [128] * 2, "wide MLP 256": [2048] * 2}
VOCABULARY, LENGTH, LONG = 128, 16, 64  # the transformer's
WORDS = 8  # indices in an example of the embeddings'


def vector_of_rank(case: str, rank: int) -> np.ndarray:
    """Return a rank's vector, (s,) float32: integers that depend on rank and place, so that any mistake shows."""
    size = SUM_BYTES[case.split(" in ", maxsplit=1)[0]] // 4
    return np.resize((np.arange(PERIOD) * (rank + 1)).astype(np.float32), size)


def split(case: str, vector: np.ndarray) -> list[np.ndarray]:
    """Split a vector into as many tensors as the case sums."""
    return np.array_split(vector, TENSORS) if "tensors" in case else [vector]


def check(total: np.ndarray, size: int) -> None:
    """Compare with the sum over `size` ranks, exactly.

    Raises:
        ValueError: an entry differs.
    """
    expected = np.arange(PERIOD) * (size * (size + 1) / 2)  # float64
    for start in range(0, total.size, PERIOD):
        entries = total[start : start + PERIOD]
        wrong = np.flatnonzero(entries != expected[: entries.size])
        if wrong.size:
            raise ValueError(f"entry {start + wrong[0]} is {entries[wrong[0]]}, not {expected[wrong[0]]}")


def examples(case: str, rank: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` examples of a rank: (count, ...) inputs and (count,) or (count, t) classes."""
    rng = np.random.default_rng(rank + 1)
    if "transformer" in case:
        length = LENGTH if case == "transformer" else LONG
        tokens = rng.integers(0, VOCABULARY, (count, length + 1)).astype("int32")
        return tokens[:, :-1], tokens[:, 1:]
    if case in EMBEDDINGS:
        words = rng.integers(0, EMBEDDINGS[case], (count, WORDS)).astype("int32")
        return words, rng.integers(0, 10, count).astype("int32")
    shape = {"cnn": (28, 28, 1), "CNN 128": (28, 28, 1), "LSTM 128": (40, 16)}.get(case, (784,))
    return rng.random((count, *shape), "float32"), rng.integers(0, 10, count).astype("int32")


def weights(shapes: Sequence[tuple[int, ...]], initial: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return first weights: random matrices, scaled to their inputs; vectors as they are in `initial`."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype("float32") if len(shape) > 1 else vector
        for shape, vector in zip(shapes, initial, strict=True)
    ]


def project(changes: Sequence[np.ndarray]) -> list[float]:
    """Return two numbers for each array: its sum, and its sum with weights that tell its entries apart."""
    vectors = [change.astype(np.float64).ravel() for change in changes]
    return [float(v @ factors) for v in vectors for factors in (np.ones(v.size), np.cos(np.arange(v.size)))]
