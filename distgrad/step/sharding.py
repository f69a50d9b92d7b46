"""Whether the update is sharded, and how an optimizer allows it.

An optimizer of Keras's own is tried on made-up numbers. If a variable comes out the same, bit for bit, when it is
updated in two flat parts, variables may be cut; if so wherever the cut is, parts of neighbours may be joined, which
makes few operations of many. Other optimizers, and those that clip each variable by its norm, update whole variables.
"""

import json
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.window import Window
from distgrad.errors import BadArgument, note, warn
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.gradients.window_accumulator import window_on_cpu
from distgrad.keras_internals import (
    config_with_rate,
    holds_optimizers,
    is_of_keras,
    optimizer_of_slices,
    optimizer_scalars,
    optimizer_slots,
    replaced_methods,
)
from distgrad.step.sharded_update import ShardedUpdate
from distgrad.step.slices import GRAIN, Freedom
from distgrad.step.update import inner_optimizer

AUTO = "auto"
# Entries that a worker is spared to update, and variables of the optimizer's for each one of the model's, from which on
# it is done by itself. Steps of two workers were faster from 2^18 entries on; but the end of a `fit` costs more, and
# the optimizer has no state to look at meanwhile. Plain gradient descent was not faster, and momentum alone made no
# difference.
PAYS, MUCH_STATE = 1 << 22, 2
OWN_RULE = {"__init__", "build", "update_step", "get_config", "from_config"}  # what looks at one variable at a time
# A made-up variable, and how often it is updated. Neither its entries nor a third of them fill registers.
SHAPE, ENTRIES, STEPS = (9, 37), 9 * 37, 30


def sharded_update(
    comm: Communicator,
    optimizer: keras.optimizers.Optimizer,
    wish: bool | str,
    variables: Sequence[keras.Variable],
    exists: Sequence[bool],
    *,
    has_sparse: bool,
) -> ShardedUpdate | None:
    """Return the sharded update of a model if it is wished for, or pays; else None. Every worker calls it.

    Args:
        wish: True, False or "auto".
        exists: for each variable, whether it has a gradient.
        has_sparse: whether rows of some variables are summed alone, which a sharded update does not.

    Raises:
        BadArgument: it is True, and this engine or device cannot do it.
    """
    if wish is False or not any(exists):
        return None
    window, layout = _window_of(comm, wish), FlatLayout(variables)
    if window is None or (wish == AUTO and (has_sparse or not _pays(window, layout.entries))):
        return None
    if all(exists):
        least_state = MUCH_STATE if wish == AUTO else 0
        reason, freedom = _agree(comm, inner_optimizer(optimizer), variables, least_state)
    else:
        reason, freedom = f"variable {variables[list(exists).index(False)].path} has no gradient", Freedom.NONE
    if not reason and not window.reserve_publication(layout.entries, layout.dtype):
        reason = "there is no shared memory for all weights"
    if reason:
        if wish is True and comm.is_root:
            warn(f"the update is not sharded: {reason}")
        return None
    if comm.is_root:
        note(
            "each worker updates its own slice of the weights; the root's optimizer has its whole state at the end of "
            "fit(), or after step.gather_optimizer()"
        )
    return ShardedUpdate(comm, window, optimizer, variables, freedom)


def _window_of(comm: Communicator, wish: bool | str) -> Window | None:
    """Return the window by which workers publish. None, or an error if it is asked for, where they cannot."""
    window = window_on_cpu(comm)
    if window is not None and window.slices is not None:
        return window
    if wish is True and not comm.alone:  # alone, a worker's slice is all there is
        raise BadArgument(
            f"shard_update=True on {comm.backend}, whose workers share no memory for weights",
            'launch it under MPI on CPUs, or leave it at "auto"',
            everywhere=True,
        )
    return None


def _pays(window: Window, entries: int) -> bool:
    """Return whether a step is faster for it: where a worker is spared enough, and no cable carries the weights."""
    slices = window.slices
    return slices is not None and slices.on_one_host and entries - entries // slices.total >= PAYS


def _agree(
    comm: Communicator, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], least_state: int
) -> tuple[str, Freedom]:
    """Return a reason against it, and the freedom that there is on all workers, whose processors may differ."""
    reason = _reason_against(optimizer, variables, least_state)
    own = json.dumps([reason, (Freedom.NONE if reason else _freedom(optimizer)).value])
    reasons, freedoms = zip(*map(json.loads, comm.exchange(own).values()), strict=True)
    return next(filter(None, reasons), ""), Freedom(min(freedoms))


def _reason_against(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], least_state: int
) -> str:
    """Return why an optimizer cannot update a part of the variables as it would update it among all; "" if it can."""
    name = type(optimizer).__name__
    if holds_optimizers(optimizer):
        return f"{name} is made of several optimizers"
    replaced = sorted(replaced_methods(optimizer) - OWN_RULE)
    if replaced:
        return f"{name}.{replaced[0]} may look at all gradients together"
    if optimizer.global_clipnorm and optimizer.gradient_accumulation_steps:
        return "the norm of gradients that the optimizer accumulates is known to no worker"
    if any(variable.overwrite_with_gradient for variable in variables):
        return "some variables take their gradients as values"
    return _reason_in_state(optimizer, least_state)


def _reason_in_state(optimizer: keras.optimizers.Optimizer, least_state: int) -> str:
    """Return what of an optimizer's state is against it, as it builds that for a made-up variable."""
    twin = optimizer_of_slices(optimizer)
    shared = list(twin.variables)
    twin.build([keras.Variable(np.zeros(SHAPE, np.float32), name="made_up")])
    slots = optimizer_slots(twin)
    known = {*map(id, shared), *map(id, optimizer_scalars(twin).values())}
    known |= {id(slot) for of_variables in slots.values() for slot in of_variables}
    if not all(id(variable) in known for variable in twin.variables):
        return f"{type(optimizer).__name__} has state that belongs to no variable"
    return f"{type(optimizer).__name__} has little state" if len(slots) < least_state else ""


def _freedom(optimizer: keras.optimizers.Optimizer) -> Freedom:
    """Find out whether a variable may be updated in parts, and joined with others."""
    if not is_of_keras(type(optimizer)) or optimizer.clipnorm:
        return Freedom.NONE
    whole = _updated(optimizer, [slice(0, ENTRIES)])
    joins, cuts = (_updated(optimizer, [slice(0, cut), slice(cut, ENTRIES)]) for cut in (ENTRIES // 3, GRAIN))
    if whole != cuts:
        return Freedom.NONE
    return Freedom.TO_JOIN if whole == joins else Freedom.TO_CUT


def _updated(optimizer: keras.optimizers.Optimizer, cuts: Sequence[slice]) -> bytes:
    """Return what an optimizer with the same settings makes of a matrix, or of parts of it."""
    weights, *gradients = np.random.default_rng(0).normal(size=(STEPS, *SHAPE)).astype(np.float32)
    tried = type(optimizer).from_config(config_with_rate(optimizer, 0.1) | {"global_clipnorm": None})
    parts = [_part(weights, cut) for cut in cuts]
    variables = [keras.Variable(part, name="made_up") for part in parts]
    tried.build(variables)
    # Within a graph, where TensorFlow replaces operations by faster ones.
    update = tf.function(lambda *gradients: tried.apply(gradients, variables), autograph=False)
    for gradient in gradients:
        update(*(_part(gradient, cut) for cut in cuts))
    slots = [variables, *optimizer_slots(tried).values()]
    return b"".join(slot.numpy().tobytes() for one in slots for slot in one if slot is not None)


def _part(values: np.ndarray, cut: slice) -> np.ndarray:
    return values if cut == slice(0, values.size) else values.ravel()[cut]
