"""What may be compiled: mypyc takes more than it carries out as Python does, and does not say so (docs/adr/0005)."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"][
    "hooks"
]
MODULES = [ROOT / path.removeprefix("/") for path in HOOK["mypyc"]["include"]]

# Plain Python with types, and so known to mypyc.
BASES = {
    "Exception",
    "ValueError",
    "NamedTuple",
    "Protocol",
    "asyncio.Protocol",
    "Enum",
    "StrEnum",
    "Collector",
    "Value",
}


def bases(path: Path) -> set[str]:
    classes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    names = {ast.unparse(base).partition("[")[0].removeprefix("enum.") for one in classes for base in one.bases}
    return names - {one.name for one in classes}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_class_derives_from_one_that_mypyc_does_not_know(path: Path) -> None:
    """It would lose what it inherits, its options, or the layout of its fields."""
    assert bases(path) - BASES - {"Generic"} == set()


def test_no_package_is_compiled() -> None:
    """It would look for its modules beside the shared library, which an editable installation has elsewhere."""
    assert not [path for path in MODULES if path.stem == "__init__"]


def test_what_is_read_from_json_is_not_compiled() -> None:
    """The types of its fields would be lost."""
    defined = {path.stem for path in MODULES}
    assert not defined & {"bodies", "payloads", "config"}
