"""JSON Schemas that a deployment writes, compiled once; what they check never makes them raise anything else. Pure.

Draft 2020-12 unless `$schema` says otherwise. Nothing is fetched: a `$ref` stays within the schema. Regular
expressions run in linear time, so no value can make one run for ever; look-around is not to be had.
"""

from typing import Any

import jsonschema_rs
import msgspec


class Schema:
    """One compiled schema.

    Attributes:
        definition: the schema as a JSON object, also where it was written as true or false.

    Raises:
        ValueError: it is no valid schema; the text is one line.
    """

    __slots__ = ("_validator", "definition")

    def __init__(self, definition: object) -> None:
        try:
            plain = msgspec.json.decode(msgspec.json.encode(definition))
            self.definition: dict[str, Any] = {} if plain is True else {"not": {}} if plain is False else plain
            self._validator = jsonschema_rs.validator_for(
                self.definition, retriever=_nothing, pattern_options=jsonschema_rs.RegexOptions()
            )
        except jsonschema_rs.ValidationError as problem:
            raise ValueError(_shown(problem)) from None
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def decode(self, payload: bytes) -> Any:
        """Read JSON and check it. Raises msgspec.DecodeError, which `ValidationError` is one of."""
        value = msgspec.json.decode(payload)
        self.check(value)
        return value

    def check(self, value: object) -> None:
        """Raise msgspec.ValidationError with the JSON path if the schema does not allow the value."""
        try:
            problem = next(self._validator.iter_errors(value), None)
        except ValueError as unusable:  # bytes, lone surrogates, nested too deeply
            raise msgspec.ValidationError(str(unusable)) from None
        if problem is not None:
            raise msgspec.ValidationError(_shown(problem))


def _shown(problem: jsonschema_rs.ValidationError) -> str:
    """The message as msgspec words its own: on one line, short, with the path at its end."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.instance_path)
    message = " ".join(problem.message.split())
    message = message if len(message) <= 200 else f"{message[:199]}…"
    return f"{message} - at `${path}`" if path else message


def _nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")
