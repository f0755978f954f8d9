"""Hypothesis for every test: the same examples each time, and no deadline on a shared machine."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")
