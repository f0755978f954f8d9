"""The base of data that is defined where functions are compiled (pure)."""

import msgspec


class Value(msgspec.Struct, frozen=True):
    """Immutable, equal where all fields are, and never read from JSON.

    Of a class in a compiled module, mypyc hands neither `frozen=True` nor the types of the fields on to msgspec. So the
    former is inherited from here, where nothing is compiled, and said again in each class for mypy; and what is read
    from JSON or described by a schema belongs to modules that are not compiled.
    """
