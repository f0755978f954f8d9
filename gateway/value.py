"""The base of data that is defined where functions are compiled (pure)."""

import msgspec


class Value(msgspec.Struct, frozen=True):
    """Immutable, and equal where all fields are.

    mypyc does not hand `frozen=True` of a class in a compiled module on to msgspec, so that has to be inherited, and is
    said again in each class for mypy. This module itself is not compiled.
    """
