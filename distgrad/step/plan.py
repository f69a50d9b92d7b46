"""What a step will be made of, as the model, its loss and the first batch tell it, before anything is traced."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.errors import warn
from distgrad.gradients.flat_vector import Layout
from distgrad.gradients.sparse import tables_of
from distgrad.objective.batch_normalization import require_single_pass, synchronised
from distgrad.objective.extra_sums import Pass, Rider, Riders
from distgrad.objective.forward import Forward, MovingStatistics
from distgrad.objective.objective import Objective
from distgrad.reports.groups import members_of
from distgrad.reports.statistics import Contents
from distgrad.step.graph import Policy


class Options(NamedTuple):
    """What was asked for, see `DistributedStep`; `trains` is False for a step without gradients."""

    micro_batch_size: int | None
    reduction: str
    groups: Mapping[str, re.Pattern[str]]
    statistics: frozenset[str]
    on_nonfinite: str
    jit_compile: bool
    trains: bool


@dataclass
class Plan:
    """All that is known of a step once it has seen what its batches are like.

    Args:
        variables: those that are differentiated.
        like: a batch of `KerasTensor`s.
        own_riders: what is summed along, besides losses and moving statistics.
    """

    comm: Communicator
    model: keras.Model
    objective: Objective
    forward: Forward
    options: Options
    variables: list[keras.Variable]
    like: tuple[Any, ...]
    own_riders: Sequence[Rider]

    def __post_init__(self) -> None:
        self._synchronised = synchronised(self.model) if self.options.trains else []
        require_single_pass(self._synchronised, self.options.micro_batch_size)
        self.riders = self._try_on()
        self.contents = self._reported()

    @property
    def divides(self) -> bool:
        """Whether the gradient is divided by N."""
        return self.options.reduction == "mean" and self.objective.divides

    @property
    def sent(self) -> Layout:
        """Of each group's sums, one after the other."""
        return Layout(self.variables * self.objective.groups)

    def policy(self, keeps_gradient: bool) -> Policy:
        """How the step is taken."""
        options = self.options
        how = (options.micro_batch_size, options.on_nonfinite, options.jit_compile)
        return Policy(*how, self.divides, bool(self._synchronised), keeps_gradient)

    def may_be_tables(self) -> list[int]:
        """Variables of whose gradients the touched rows alone are summed, if they turn out to be sparse."""
        return [] if self.objective.groups > 1 else tables_of(self.model, self.variables)

    def settings(self) -> list[str]:
        """What must be the same on all workers, each as "name=value"."""
        policy = [f"reduction={'mean' if self.divides else 'sum'}", f"on_nonfinite={self.options.on_nonfinite}"]
        asked = [f"statistics={','.join(sorted(self.contents.asked))}", f"by variable={self.contents.by_variable}"]
        return [*policy, f"micro_batch_size={self.options.micro_batch_size}", *asked, *self.objective.settings()]

    def _try_on(self) -> Riders:
        """Learn what the model gives, and who rides along."""

        def look(seen: Pass) -> None:
            are_sums: list[bool] = []
            if seen.scope.losses:
                with tf.init_scope(), self.comm.scope():
                    are_sums = self.forward.added_sums(self.like[0])
            self.objective.learn(seen, are_sums)

        y_pred, moving = self.forward.try_on(self.like, look)
        statistics = MovingStatistics(moving if self.options.trains else [])
        riders = Riders([self.objective, statistics, *self.own_riders])
        x, y, sample_weight = (*self.like, None, None)[:3]
        riders.prepare(Pass(x, y, sample_weight, y_pred, keras.KerasTensor(()), keras.StatelessScope()))
        return riders

    def _reported(self) -> Contents:
        """What the reports will tell."""
        variables = [(variable.path, tuple(variable.shape)) for variable in self.variables]
        paths = [path for path, _ in variables]
        groups = members_of(self.options.groups, paths, is_root=self.comm.is_root) if self.options.trains else {}
        return Contents(variables, groups, self.comm.size, self.comm.rank, self._asked(), self.divides)

    def _asked(self) -> frozenset[str]:
        """What statistics there will be of those that were asked for."""
        asked = self.options.statistics if self.options.trains else frozenset()
        of_one_sum = asked & {"workers", "noise"}
        if self.objective.groups > 1 and of_one_sum and self.comm.is_root:
            warn(f"no statistics {', '.join(sorted(of_one_sum))}: the losses are divided by several numbers")
        return asked if self.objective.groups == 1 else asked - of_one_sum
