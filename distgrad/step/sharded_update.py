"""The sharded update: each worker updates its own slice of the weights, and has the optimizer's state for that alone.

    gradient    summed over the workers, divided and described as ever
    update      the optimizer runs on the variables of this worker's slice: a flat one for each run of entries that are
                updated alike (slices.py), or the model's own where they must not be cut
    publish     every worker gives the new values of its slice, and sees those of all
    assign      the model's variables take them

The optimizer that runs is a twin of the user's: it has the same settings, learning rate and number of steps. The user's
own one has state only where and while somebody may look at it (sharded_state.py).
"""

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import joined
from distgrad.collectives.window import Part, Window
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.gradients.global_gradient import GlobalGradient
from distgrad.gradients.micro_batch import tensor_of
from distgrad.keras_internals import build_scaling, decays, optimizer_of_slices, set_decays
from distgrad.step.sharded_state import ShardedState, Unit
from distgrad.step.slices import Freedom, Kind, Run, overlaps, runs_of, share_out
from distgrad.step.update import apply_gradient, inner_optimizer


class ShardedUpdate:
    """The update of the weights by slices. Every worker makes one at the same time.

    Args:
        comm: the workers.
        window: the one by which they publish.
        optimizer: the user's.
        variables: all that are trained; each has a gradient.
        freedom: how the optimizer lets variables be cut and joined.

    Attributes:
        state: the optimizer's.
        shared: the variables of the optimizer that every worker has: the learning rate, the number of steps, the scale.
    """

    def __init__(
        self,
        comm: Communicator,
        window: Window,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        freedom: Freedom,
    ) -> None:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and not optimizer.built:
            build_scaling(optimizer)
        users = inner_optimizer(optimizer)
        self._window, self._variables, self._layout = window, variables, FlatLayout(variables)
        self._places = self._layout.places()
        self._own = optimizer_of_slices(users)
        self._global_clipnorm, self._own.global_clipnorm = self._own.global_clipnorm, None
        of_users = set(map(id, users.variables))
        self.shared = [*(v for v in optimizer.variables if id(v) not in of_users), *self._own.variables]
        assert window.slices is not None
        number, total, _ = window.slices
        kinds = [self._kind(index, freedom) for index in range(len(variables))]
        slices = share_out(runs_of(self._places, kinds), total, self._layout.entries)
        self._bounds = slices.bounds
        # Without any variable an optimizer would count no step.
        nothing = Run(0, 0, Kind(self._layout.dtype.name))
        runs = [] if number is None else slices.runs[number]
        start = 0 if number is None else self._bounds[number]
        self._units = [self._unit(run) for run in runs or [nothing._replace(first=start, last=start)]]
        self.state = ShardedState(
            comm,
            users,
            self._own,
            variables=variables,
            places=self._places,
            slices=slices,
            number=number,
            units=self._units,
        )

    def _kind(self, index: int, freedom: Freedom) -> Kind:
        variable = self._variables[index]
        if variable.constraint is not None:
            freedom = Freedom.NONE
        alone = None if freedom is Freedom.TO_JOIN else index
        return Kind(variable.dtype, decays(self._own, variable), alone, index if freedom is Freedom.NONE else None)

    def _unit(self, run: Run) -> Unit:
        if run.kind.whole is not None:
            return Unit(run, self._variables[run.kind.whole])
        variable = keras.Variable(tf.zeros(run.size, run.kind.dtype), dtype=run.kind.dtype, name="slice")
        set_decays(self._own, variable, run.kind.decays)
        return Unit(run, variable)

    def start(self) -> None:
        """Begin with the root's state, if its optimizer has one. Every worker calls it, with the same weights."""
        if not self._own.built:  # some optimizers begin with the weights
            self._load()
            self._own.build([unit.variable for unit in self._units])
        self.state.start()

    # ---- within the graph

    def apply(self, gradient: GlobalGradient) -> None:
        """Update this worker's slice, and assign what all workers have made of theirs.

        Args:
            gradient: the global one, the same on every worker.
        """
        gradients = self._of_slice(gradient)
        self._load()
        apply_gradient(self._own, gradients, [unit.variable for unit in self._units])
        published = self._window.publish([self._part(unit) for unit in self._units], self._bounds)
        for variable, value in zip(self._variables, self._layout.unflatten([published]), strict=True):
            tensor_of(variable).assign(tf.cast(value, variable.dtype))

    def _of_slice(self, gradient: GlobalGradient) -> list[tf.Tensor]:
        """Return the gradient of each variable of this worker's slice, clipped where the norm of all is."""
        flat, limit = joined(gradient.blocks), self._global_clipnorm
        parts = [tf.reshape(flat[run.first : run.last], variable.shape) for run, variable in self._units]
        if not limit:
            return parts
        norm = tf.cast(gradient.statistics.gradient_norm, tf.float32)
        factor = limit * tf.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)  # as Keras does: NaN if that is not finite
        return [part * tf.cast(factor, part.dtype) for part in parts]

    def _load(self) -> None:
        """Take the weights of this worker's slice from the model, where anybody may have changed them."""
        for run, variable in self._units:
            if run.kind.whole is None and run.size:
                tensor_of(variable).assign(joined(list(self._weights_of(run))))

    def _weights_of(self, run: Run) -> Iterator[tf.Tensor]:
        """Give the weights of a run in pieces, with zeros where no variable is."""
        reached = 0
        for number, of_variable, of_run in overlaps(self._places, run):
            if of_run.start > reached:
                yield tf.zeros(of_run.start - reached, run.kind.dtype)
            yield tf.reshape(tensor_of(self._variables[number]), [-1])[of_variable]
            reached = of_run.stop

    def _part(self, unit: Unit) -> Part:
        values = tf.cast(tensor_of(unit.variable), self._layout.dtype)
        return Part(unit.run.first, tf.reshape(values, [unit.run.size]))
