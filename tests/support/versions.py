"""Releases of Keras that the tests meet, and what is not in all of them."""

import keras
import pytest

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])


def since_keras(*release: int) -> pytest.MarkDecorator:
    """The mark of a test, or of one of its cases, that holds from a release of Keras on."""
    return pytest.mark.skipif(release > KERAS, reason=f"Keras {'.'.join(map(str, release))} brought it")
