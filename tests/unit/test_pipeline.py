"""Iterators end at once: none of the datasets that a step or a fit reads has TensorFlow's tuning thread."""

from typing import Any

import pytest
import tensorflow as tf

import distgrad
from distgrad.data.cursor import DataCursor
from distgrad.data.pipeline import without_autotune
from distgrad.fit.data import fit_data

ROWS = 12


@pytest.fixture(scope="module")
def comm() -> distgrad.Communicator:
    return distgrad.connect("solo")


def batches() -> tf.data.Dataset:
    return tf.data.Dataset.range(ROWS).shuffle(ROWS, seed=1).batch(4)


def is_tuned(data: Any) -> bool:
    return data.options().autotune.enabled is not False


def test_what_was_set_by_hand_is_kept_and_what_is_no_dataset_stays_as_it_is() -> None:
    options = tf.data.Options()
    options.autotune.enabled = True
    assert is_tuned(batches())
    assert not is_tuned(without_autotune(batches()))
    assert is_tuned(without_autotune(batches().with_options(options)))
    rows = [1, 2]
    assert without_autotune(rows) is rows


def test_shares_are_not_tuned(comm: distgrad.Communicator) -> None:
    own = fit_data(comm, {"x": batches(), "shuffle": True})
    assert not is_tuned(own.dataset)
    assert not is_tuned(comm.shard(batches()))


def test_an_epoch_is_not_tuned_and_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    passes = tf.data.Dataset.__iter__
    for kind in {type(batches()), type(without_autotune(batches()))}:
        monkeypatch.setattr(kind, "__iter__", lambda data: begun.append(data) or passes(data), raising=False)
    found, _ = DataCursor().begin(batches())
    first = [batch.numpy().tolist() for batch in found]
    assert first == [batch.numpy().tolist() for batch in batches()]
    assert not is_tuned(begun[0])
