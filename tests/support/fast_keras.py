"""Imports Keras without what it takes along where it finds it, in two thirds of the time; it can be imported later."""

import sys

BESIDES = ("sklearn", "scipy", "pandas", "matplotlib")
for package in BESIDES:
    sys.modules[package] = None
import keras  # noqa: E402, F401

for package in BESIDES:
    del sys.modules[package]
