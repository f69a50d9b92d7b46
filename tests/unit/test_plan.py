"""What a step learns of a model before it is traced."""

import keras
import numpy as np

from distgrad import DistributedStep, connect
from distgrad.step.plan import GradientKinds

WORDS = 4200  # large enough that touched rows may be summed alone


class Model(keras.Model):
    """An embedding, a dense layer, a weight that no loss depends on, and one that is only regularized."""

    def build(self, _shape: tuple[int, ...]) -> None:
        self.embedding = keras.layers.Embedding(WORDS, 4)
        self.embedding.build((None, 3))
        self.dense = keras.layers.Dense(2, use_bias=False)
        self.dense.build((None, 4))
        self.unused = self.add_weight(shape=(), name="unused")
        self.regularized = self.add_weight(shape=(), name="regularized", regularizer="l2")

    def call(self, ids: np.ndarray) -> np.ndarray:
        return self.dense(keras.ops.mean(self.embedding(ids), axis=1))


def test_gradients_are_dense_sparse_or_missing() -> None:
    with connect("solo") as comm:
        step = DistributedStep(Model(), "mse", "sgd", comm=comm, log_every=0)
        step(np.ones((2, 3), "int32"), np.ones((2, 2), "float32"))
        names = [variable.path.split("/")[-1] for variable in step.model.trainable_variables]
        exists = tuple(name != "unused" for name in names)
        assert step._plan.kinds == GradientKinds(exists, sparse=(names.index("embeddings"),))
