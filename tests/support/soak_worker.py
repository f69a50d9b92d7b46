"""A training on the digits that goes on from its last checkpoint.

    soak_worker.py FOLDER [--steps N] [--pause SECONDS]

It saves every so many steps, and ends when it is told to, or after N. faults/soak.py does things to it.
"""

import argparse
import signal
import time

import distgrad

SAVED_EVERY = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    asked: list[int] = []  # to raise; out of the handler itself, it might be in the midst of what catches everything
    signal.signal(signal.SIGUSR2, lambda number, _: asked.append(number))
    comm = distgrad.connect()
    import keras  # noqa: PLC0415 (which comes after connect)
    import tensorflow as tf  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415

    images, digits = load_digits(return_X_y=True)
    keras.utils.set_random_seed(comm.rank)
    tf.random.set_seed(0)  # a part of what shuffling is seeded with
    dataset = tf.data.Dataset.from_tensor_slices((images / 16, digits)).shuffle(len(images), seed=1).batch(64)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(10)]
    with comm.scope():
        model = keras.Sequential([keras.Input((64,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = distgrad.DistributedStep(model, loss, keras.optimizers.Adam(1e-3), comm=comm, micro_batch_size=20)
    checkpoint = distgrad.Checkpoint(options.folder, comm)
    began = checkpoint.resume(step)
    if comm.is_root:
        print(f"began at {began}", flush=True)
    while step.steps != options.steps:
        for report in step.epoch(comm.shard(dataset)):
            if asked:
                raise ValueError("bad sample in file 7")
            if report.step % SAVED_EVERY == 0 or report.step == options.steps:
                checkpoint.save(step)
            if report.step == options.steps:
                break
            time.sleep(options.pause)
    checkpoint.wait()


if __name__ == "__main__":
    main()
