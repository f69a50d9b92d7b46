"""PyTorch's DistributedDataParallel over Gloo, on the three MLPs."""

import contextlib
import itertools
import os

import numpy as np
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from distgrad.bench.data import HIDDEN_UNITS, LEARNING_RATE, MICRO_BATCH, MICRO_BATCHES, examples, project, weights
from distgrad.bench.worker import Prepared

ROWS = MICRO_BATCH * MICRO_BATCHES  # of each rank


class TorchDdp:
    """The workers of one PyTorch job."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def barrier(self) -> None:
        torch.distributed.barrier()

    def clear(self) -> None:
        """Do nothing: no turn keeps anything."""

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        module = _mlp(HIDDEN_UNITS[case])
        ddp = DistributedDataParallel(module, gradient_as_bucket_view=True)
        optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE)
        x, y = (torch.tensor(array) for array in examples(case, self.rank, ROWS))
        micro_batches = list(zip(torch.split(x, MICRO_BATCH), torch.split(y.long(), MICRO_BATCH), strict=True))

        def step() -> None:
            optimizer.zero_grad()
            for number, (inputs, classes) in enumerate(micro_batches, 1):
                last = number == len(micro_batches)
                with contextlib.nullcontext() if last else ddp.no_sync():
                    # DDP averages over the ranks; dividing by a rank's rows makes it the mean over all rows.
                    loss = torch.nn.functional.cross_entropy(ddp(inputs), classes, reduction="sum") / ROWS
                    torch.autograd.backward(loss)
            optimizer.step()

        before = [_value(parameter) for parameter in module.parameters()]
        step()
        after = [_value(parameter) for parameter in module.parameters()]
        return Prepared(step, project([new - old for new, old in zip(after, before, strict=True)]))


def _value(parameter: torch.nn.Parameter) -> np.ndarray:
    """Return a copy of a parameter, laid out as Keras lays it out: (inputs, outputs)."""
    return parameter.detach().numpy().astype(np.float64).T.copy()


def _mlp(units: list[int]) -> torch.nn.Sequential:
    """Return the same model as models.py's, with the same weights."""
    sizes = [784, *units, 10]
    shapes: list[tuple[int, ...]] = [shape for a, b in itertools.pairwise(sizes) for shape in ((a, b), (b,))]
    values = weights(shapes, [np.zeros(shape, "float32") for shape in shapes])
    layers: list[torch.nn.Module] = []
    for kernel, bias in zip(values[::2], values[1::2], strict=True):
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = torch.tensor(kernel.T.copy())
        linear.bias.data = torch.tensor(bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


join = TorchDdp
