"""Reads a frozen tree of Structs from a TOML table and texts, with every problem found in one pass.

Decides how settings are read and how their problems are told; which settings there are, `gateway.config` does.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from msgspec import UNSET, Struct, convert, structs

from gateway.addresses import BrokerUrl, Listen, Network

PARSED: Final = (Listen, BrokerUrl, Network)  # settings that have a notation of their own


class ConfigError(Exception):
    """The settings cannot be used; `problems` says why, one line each, without any password."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Reading:
    """One walk over what was given; keeps one problem for each path."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels  # by path: where a value came from that is not the file's
        self.problems: dict[str, str] = {}

    def problem(self, path: str, text: str) -> Any:
        """Note it, and return what stands for a value that is missing."""
        setting, bracket, index = path.partition("[")
        self.problems[path] = f"{self.labels.get(setting, setting)}{bracket}{index}: {text}"
        return UNSET

    def struct(self, cls: Any, table: object, path: str) -> Any:
        """Return `table` as a `cls`; UNSET, and a problem, where it is none."""
        if not isinstance(table, dict):
            return self.problem(path, f"expected {expected(cls)}, got {_shown(table)}")
        known = {field.name: field for field in structs.fields(cls)}
        values = {}
        for key, given in table.items():
            name = key if re.fullmatch("[A-Za-z0-9_-]+", key) else _shown(key)
            at = f"{path}.{name}" if path else name
            if key in known:
                values[key] = self.value(known[key].type, given, at)
            else:
                sections = [name for name, field in known.items() if _is_section(field.type)]
                is_section = not path and isinstance(given, dict)
                self.problem(
                    at, _unknown_section(key, sections) if is_section else f"unknown key{suggestion(key, known, 0.6)}"
                )
        for key in [key for key in known if known[key].required and key not in table]:
            self.problem(f"{path}.{key}", f"missing, expected {expected(known[key].type)}")
        try:
            return cls(**{key: value for key, value in values.items() if value is not UNSET})
        except TypeError:  # a required key has no value, and a problem by now
            return UNSET

    def value(self, annotation: Any, given: object, path: str) -> Any:
        """Return what was given as what is annotated; UNSET, and a problem, where it is none."""
        plain = _plain(annotation)
        try:
            if plain in PARSED:
                return given if isinstance(given, plain) else plain.parse(convert(given, str))
            if isinstance(plain, type) and issubclass(plain, Struct):
                return self.struct(plain, given, path)
            if get_origin(plain) is not tuple:
                return convert(given, annotation)
            items = convert(given, list[Any])
        except ValueError:
            secret = plain is BrokerUrl or (isinstance(given, str) and "@" in given)  # a URL may hold a password
            got = "" if secret else f", got {_shown(given)}"
            return self.problem(path, f"expected {expected(annotation)}{got}")
        values = [self.value(get_args(plain)[0], item, f"{path}[{n}]") for n, item in enumerate(items)]
        return tuple(value for value in values if value is not UNSET)


def settings_of(tree: type[Struct]) -> dict[str, Any]:
    """The annotation of every setting, by path."""
    found: dict[str, Any] = {}
    for top in structs.fields(tree):
        leaves = () if get_origin(top.type) is Annotated else structs.fields(top.type)
        found |= {f"{top.name}.{leaf.name}": leaf.type for leaf in leaves} or {top.name: top.type}
    return found


def merged(tree: type[Struct], table: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """A copy of the table with each value at its path; texts become the type that the setting has."""
    settings = settings_of(tree)
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        target = result.setdefault(section, {}) if section else result
        if isinstance(target, dict):  # otherwise the section itself is a problem
            target[key] = _from_text(settings.get(path), value) if isinstance(value, str) else value
    return result


def _from_text(annotation: Any, text: str) -> object:
    """Read numbers and lists as TOML does; a list may be items between commas. What is neither stays text."""
    plain = _plain(annotation)
    if get_origin(plain) is tuple and not text.startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if plain not in (int, float) and get_origin(plain) is not tuple:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def expected(annotation: Any) -> str:
    """What a setting may be, in words."""
    for meta in getattr(annotation, "__metadata__", ()):
        if meta.extra:
            return str(meta.extra["expected"])
    plain = _plain(annotation)
    if get_origin(plain) is Literal:
        return " or ".join(map(as_toml, get_args(plain)))
    if get_origin(plain) is tuple:
        return f"a list, each {expected(get_args(plain)[0])}"
    return getattr(plain, "expected", "a table" if issubclass(plain, Struct) else "text")


def _unknown_section(name: str, sections: Iterable[str]) -> str:
    return f"unknown section{suggestion(name, sections, 0.6) or ', expected one of ' + ', '.join(sections)}"


def _is_section(annotation: Any) -> bool:
    plain = _plain(annotation)
    return isinstance(plain, type) and issubclass(plain, Struct)


def suggestion(word: str, known: Iterable[str], least_ratio: float = 0.8) -> str:
    """The known word that was meant, as the end of a sentence; empty if none is alike."""
    close = difflib.get_close_matches(word, known, 1, least_ratio)
    return f', did you mean "{close[0]}"?' if close else ""


def _shown(value: object) -> str:
    """A value for a person: on one line, and short."""
    text = "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else as_toml(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def as_toml(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, Struct) and not isinstance(value, PARSED):
        return f"{{ {', '.join(f'{key} = {as_toml(item)}' for key, item in structs.asdict(value).items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)  # Python refuses very long decimals
    return json.dumps(value, default=str, ensure_ascii=not str(value).isprintable())
