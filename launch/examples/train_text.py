"""A small transformer that learns to write Python, letter by letter, from the standard library's own source text.

    python launch/examples/train_text.py                              alone
    distgrad run -np 2 launch/examples/train_text.py --steps 500      on two workers, with the same batches

The text is on every machine that has Python, so nothing is downloaded. Every worker reads it and takes its rows of each
global batch. The root shows a progress bar on a terminal, else a line every 50 steps, and then writes some Python.
"""

import argparse
import sysconfig
from pathlib import Path

import distgrad

comm = distgrad.connect()  # before TensorFlow is used

import keras  # noqa: E402
import numpy as np  # noqa: E402
import rich.console  # noqa: E402
import rich.progress  # noqa: E402

LETTERS = 128  # ASCII; anything else counts as 0
HEADS = 4
EVERY = 50  # steps between two lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a character-level transformer on Python's standard library.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of the global batch, over all workers")
    parser.add_argument("--micro-batch-size", type=int, default=16, help="rows a worker differentiates at once")
    parser.add_argument("--context", type=int, default=64, help="letters of a row")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches")
    parser.add_argument("--compression", default="none", help="of gradients between hosts: none, bf16 or auto")
    return parser.parse_args()


def transformer(context: int, width: int, layers: int) -> keras.Model:
    letters = keras.Input((context,), dtype="int32")  # (rows, context)
    x = keras.layers.Embedding(LETTERS, width)(letters)
    x = x + keras.layers.Embedding(context, width)(keras.ops.arange(context))  # (rows, context, width)
    for _ in range(layers):
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(HEADS, width // HEADS)(normed, normed, use_causal_mask=True)
        hidden = keras.layers.Dense(4 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(width)(hidden)
    return keras.Model(letters, keras.layers.Dense(LETTERS)(keras.layers.LayerNormalization()(x)))


def source_text() -> np.ndarray:
    """(n,) uint8: some megabytes of Python."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"\0".join(file.read_bytes() for file in files), np.uint8)
    return np.where(text < LETTERS, text, 0)


def batch(text: np.ndarray, rng: np.random.Generator, rows: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """This worker's rows of the next global batch, which every worker draws alike: letters, and those that follow."""
    starts = rng.integers(0, len(text) - context - 1, rows)
    own = slice(comm.rank * rows // comm.size, (comm.rank + comm.span) * rows // comm.size)
    window = text[starts[own, None] + np.arange(context + 1)].astype("int32")  # (own rows, context + 1)
    return window[:, :-1], window[:, 1:]


def write(model: keras.Model, start: str, count: int, context: int) -> str:
    """Go on from a beginning, each time with a letter drawn by its probability."""
    rng = np.random.default_rng(0)
    text = [ord(letter) for letter in start]
    for _ in range(count):
        recent = text[-context:]
        seen = np.zeros((1, context), "int32")
        seen[0, : len(recent)] = recent
        scores = np.array(model(seen))[0, len(recent) - 1].astype("float64")
        odds = np.exp(scores - scores.max())
        text.append(int(rng.choice(LETTERS, p=odds / odds.sum())))
    return "".join(map(chr, text))


def main() -> None:
    options = arguments()
    keras.utils.set_random_seed(options.seed)
    with comm.scope():
        model = transformer(options.context, options.width, options.layers)
    step = distgrad.DistributedStep(
        model,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.AdamW(3e-3, global_clipnorm=1.0),
        comm=comm,
        micro_batch_size=options.micro_batch_size,
        log_every=0,
        compression=options.compression,
    )
    text, rng, console = source_text(), np.random.default_rng(options.seed), rich.console.Console()
    with rich.progress.Progress(console=console, disable=not (comm.is_root and console.is_terminal)) as progress:
        task = progress.add_task("", total=options.steps)
        for number in range(1, options.steps + 1):
            report = step(*batch(text, rng, options.batch_size, options.context))
            progress.advance(task)
            if number % EVERY == 0 or number == options.steps:
                line = f"step {number} | loss {report.loss:.4f} a letter | workers {report.workers}"
                progress.update(task, description=line)
                if comm.is_root and not console.is_terminal:
                    print(line, flush=True)
    if comm.is_root:
        print(write(model, "def ", 200, options.context), flush=True)
    comm.close()


if __name__ == "__main__":
    main()
