"""Imported before Keras, this makes it start in two thirds of the time: it does without what it cannot import."""

import sys

for package in ("sklearn", "scipy", "pandas", "matplotlib"):
    sys.modules[package] = None
