"""Train on scikit-learn's 1,797 handwritten digits: the same script on one worker or on many.

    python launch/train_digits.py                      alone
    mpirun -np 2 python launch/train_digits.py         MPI
    horovodrun -np 2 python launch/train_digits.py     Horovod
    TF_CONFIG=... python launch/train_digits.py        MultiWorkerMirroredStrategy, once for each task

However many workers there are, they see the global batches that one would see, so the printed gradient sums and
the accuracy are the same up to rounding. The last batch of an epoch is short, and no worker minds.
"""

import argparse

import distgrad


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on handwritten digits, on however many workers launched this.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of the global batch, over all workers")
    parser.add_argument("--micro-batch-size", type=int, default=10, help="rows a worker differentiates at once")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images")
    parser.add_argument("--compression", default="none", help="of gradients between hosts: none, bf16 or auto")
    parser.add_argument("--log-format", choices=("text", "json", "live"), default="text")
    parser.add_argument("--log-file", help="JSON lines for `distgrad report`")
    parser.add_argument("--statistics", nargs="*", default=(), help="what else to tell of each step; 'all' for all")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with distgrad.connect() as comm:  # before TensorFlow is used, as its own strategies demand
        import keras  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415
        import tensorflow as tf  # noqa: PLC0415
        from sklearn.datasets import load_digits  # noqa: PLC0415
        from sklearn.model_selection import train_test_split  # noqa: PLC0415

        from distgrad.seeing import Alarms  # noqa: PLC0415

        digits = load_digits()
        images = (digits.images[..., np.newaxis] / 16).astype("float32")  # (1797, 8, 8, 1) in [0, 1]
        x, x_test, y, y_test = train_test_split(images, digits.target, test_size=360, random_state=0)

        # One seed for all workers, so that they shuffle alike and share out the same global batches.
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1 + options.seed)
        dataset = dataset.batch(options.batch_size)

        keras.utils.set_random_seed(options.seed)
        with comm.scope():
            model = keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    keras.layers.Conv2D(16, 3, activation="relu"),
                    keras.layers.Flatten(),
                    keras.layers.Dense(64, activation="relu"),
                    keras.layers.Dense(10),
                ]
            )
        step = distgrad.DistributedStep(
            model,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            optimizer=keras.optimizers.Adam(3e-3, global_clipnorm=5.0),
            comm=comm,
            micro_batch_size=options.micro_batch_size,
            log_format=options.log_format,
            log_file=options.log_file,
            statistics=options.statistics,
            compression=options.compression,
            listeners=[Alarms()],
        )
        for _ in range(options.epochs):
            for _report in step.epoch(comm.shard(dataset)):
                pass  # rank 0 has printed its line

        if comm.is_root and options.log_format == "text":
            predicted = np.argmax(model(x_test), axis=-1)
            print(f"test accuracy {np.mean(predicted == y_test):.4f}", flush=True)


if __name__ == "__main__":
    main()
