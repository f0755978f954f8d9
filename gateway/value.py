"""The base of values (pure)."""

from typing import ClassVar


class Value:
    """Equal to another of its class where all fields are: what `__slots__` names; nobody changes them, says mypy.

    For what is made for each message: `__init__` assigns each argument, as Final, and does nothing else, which costs
    next to nothing where it is compiled. A dataclass is shorter, but its `__init__` is never compiled. What is read
    from JSON or written as JSON is a Struct, in a module that is not compiled.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).__slots__)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in type(self).__slots__)))

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in type(self).__slots__)
        return f"{type(self).__name__}({', '.join(fields)})"
