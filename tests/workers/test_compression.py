"""The argument `compression`, where no sum goes between hosts, and where the workers differ."""

import keras
import pytest

from distgrad import Communicator, distribute
from distgrad.errors import BadArgument, SettingsMismatch
from support.steps import integers, linear, own, product, quiet


@pytest.mark.every_engine
def test_within_a_host_it_has_no_effect_which_a_line_says_of_bf16_alone(
    comm: Communicator, capfd: pytest.CaptureFixture[str]
) -> None:
    batch, found = own(comm, integers()), []
    for mode in ("none", "auto", "bf16"):
        model = linear(comm)
        quiet(comm, model, product, compression=mode)(*batch)
        found.append(model.get_weights()[0].tolist())
        said = "compression='bf16' has no effect: no sum goes between hosts over MPI"
        expected = int(mode == "bf16" and comm.is_root)
        err = capfd.readouterr().err
        assert (err.count(said), err.count("compression")) == (expected, expected)
    assert found[0] == found[1] == found[2]


def test_a_train_step_of_the_model_s_own_says_that_it_has_no_effect(
    comm: Communicator, capfd: pytest.CaptureFixture[str]
) -> None:
    class Own(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = distribute(Own([keras.Input((2,)), keras.layers.Dense(1)]), comm, compression="bf16")
    model.compile("sgd", "mse")
    model.fit(*integers(), batch_size=6, verbose=0)
    assert capfd.readouterr().err.count("compression: without effect on a train_step") == comm.is_root


def test_another_compression_on_one_worker_is_found_before_anything_is_summed(comm: Communicator) -> None:
    if comm.size == 1 or comm.span > 1:
        pytest.skip("takes another worker in a process of its own")
    step = quiet(comm, linear(comm), product, compression="bf16" if comm.rank == 1 else "none")
    with pytest.raises(SettingsMismatch, match="'compression=bf16' on rank 1 but 'compression=none' on rank 0"):
        step(*own(comm, integers()))


def test_an_unknown_compression_is_refused(comm: Communicator) -> None:
    with pytest.raises(BadArgument, match=r"compression='fp16'; give \"none\", \"bf16\" or \"auto\""):
        quiet(comm, linear(comm), product, compression="fp16")
