"""Tests of parts, in this process."""

from hypothesis import settings

settings.register_profile("tensorflow", deadline=None, max_examples=60)
settings.load_profile("tensorflow")
