"""The shape of the code: what may import what, and how long a module may be."""

import ast
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "gateway"
MODULES = {
    ".".join(("gateway", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
MAX_LINES = 400  # a longer module has two jobs

# Pure: what a peer sends goes in, what is to be done comes out, and time is an argument.
CORES = {
    "gateway",
    "gateway.addresses",
    "gateway.admission",
    "gateway.auth",
    "gateway.auth.base",
    "gateway.auth.cache",
    "gateway.crowd",
    "gateway.exposition",
    "gateway.exposures",
    "gateway.proxies",
    "gateway.bodies",
    "gateway.topics",
    "gateway.value",
    "gateway.worker",
    "gateway.catalog",
    "gateway.payloads",
    "gateway.schemas",
    "gateway.own_events",
    "gateway.commands",
    "gateway.facts",
    "gateway.limits",
    "gateway.delivery",
    "gateway.outcomes",
    "gateway.session",
    "gateway.settings",
    "gateway.rooms",
    "gateway.engine",
    "gateway.engine.codec",
    "gateway.engine.effects",
    "gateway.engine.options",
    "gateway.engine.session",
    "gateway.wheel",
    "gateway.simulate",
    "gateway.simulate.packets",
    "gateway.simulate.profiles",
    "gateway.simulate.tally",
    "gateway.simulate.wire",
    "gateway.mqtt",
    "gateway.mqtt.flow",
    "gateway.mqtt.wire",
    "gateway.mqtt.session",
    "gateway.mqtt.values",
}
SETTINGS = "gateway.config"  # frozen data to everyone; knows the name of its host
TOPS = {"gateway.app", "gateway.demo", "gateway.supervisor", "gateway.__main__"}
TOPS |= {
    name for name in MODULES if name.startswith("gateway.cli")
}  # they wire the rest; every other module is an edge
IMPURE = {"asyncio", "concurrent", "logging", "random", "secrets", "select", "selectors", "signal", "socket"}
IMPURE |= {"subprocess", "threading", "time", "aiohttp", "aiomqtt", "engineio", "paho", "socketio", "uvloop"}


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a module imports, wherever in it the statement stands, and each package above one of ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= submodules or {node.module}
    parents = {name.rpartition(".")[0] for name in found if name in MODULES} - {"gateway", module, ""}
    return frozenset(found | parents)


@cache
def reach(module: str) -> frozenset[str]:
    """The modules of ours that come with an import of this one, itself and not the settings included."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in seen and name != SETTINGS:
            seen.add(name)
            pending.extend(imports(name) & set(MODULES))
    return frozenset(seen)


def layer(module: str) -> int:
    """0 is a core, 1 an edge, 2 the application."""
    return 0 if module in CORES or module == SETTINGS else 2 if module in TOPS else 1


def test_the_cores_exist() -> None:
    assert {*CORES, SETTINGS} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(CORES))
def test_a_core_is_pure(module: str) -> None:
    """Neither it nor what it imports reads a clock, waits, logs or rolls dice."""
    found = {
        (name, imported) for name in reach(module) for imported in imports(name) if imported.partition(".")[0] in IMPURE
    }
    assert not found


@pytest.mark.parametrize("module", sorted(CORES))
def test_a_core_asks_nobody_for_the_time_of_day(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {"now", "utcnow", "today"}
    assert not asked


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_from_the_application_over_the_edges_to_the_cores(module: str) -> None:
    up = {name for name in imports(module) & set(MODULES) if layer(name) > layer(module)}
    assert not up


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_imports_in_circles(module: str) -> None:
    beyond = chain.from_iterable(reach(name) for name in imports(module) & set(MODULES) if name != SETTINGS)
    assert module not in set(beyond)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_says_what_it_is_for_and_is_short(module: str) -> None:
    text = MODULES[module].read_text("utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= MAX_LINES
