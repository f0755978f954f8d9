"""deploy/METRICS.md and the code: each metric is in both, with its type, labels, their values, and buckets."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import admin
from gateway.catalog import EVENTS
from gateway.edge_metrics import SupervisorMetrics
from gateway.instruments import Counts, Histograms, Instruments
from gateway.metrics import Metrics
from gateway.session_metrics import OTHER

TEXT = (Path(__file__).parent.parent / "deploy" / "METRICS.md").read_text("utf-8")
Row = tuple[str, str, dict[str, frozenset[str] | None], list[float] | None]


def cells(first: str) -> Iterator[list[str]]:
    """The cells of the rows whose first cell begins with this."""
    for line in TEXT.splitlines():
        if line.startswith(f"| {first}"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


SETS = {quoted(name)[0]: quoted(values) for name, values in (row for row in cells("`") if len(row) == 2)}
SETS["event"] = [*EVENTS, OTHER]
BUCKETS = {
    name.strip("*"): [float(bound) for bound in re.sub(r"\(.*", "", bounds).split(",")] for name, bounds in cells("*")
}


def labels(cell: str) -> dict[str, frozenset[str] | None]:
    """The labels of a metric with their values; None where each node has its own."""
    of_label = (quoted(part) for part in cell.split(";") if part)
    return {label: frozenset(values or SETS.get(label, [])) or None for label, *values in of_label}


def documented() -> dict[str, Row]:
    rows = {}
    for name, kind, labelled, _, _ in (row for row in cells("`gateway_") if len(row) == 5):
        kind, _, bucket = kind.partition(", ")
        rows[quoted(name)[0]] = (quoted(name)[0], kind, labels(labelled), BUCKETS.get(bucket.strip("*")))
    return rows


SUPERVISOR = Instruments()
SupervisorMetrics(SUPERVISOR, ("gw-1.1", "gw-1.2"))
FAMILIES: dict[str, Counts | Histograms] = {
    family.name: family for family in (*SUPERVISOR.families, *Metrics().instruments.families)
}


def test_every_metric_is_documented_and_every_documented_one_is_there() -> None:
    assert sorted(documented()) == sorted(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_type_labels_and_buckets_are_as_documented(name: str) -> None:
    family = FAMILIES[name]
    _, kind, labelled, bounds = documented()[name]
    assert family.kind == kind
    assert list(family.labels) == list(labelled)
    for label, values in labelled.items():
        assert values is None or values == set(family.labels[label])
    assert (list(family.bounds) if isinstance(family, Histograms) else None) == bounds


def test_the_metrics_of_the_process_are_those_documented() -> None:
    _, _, rest = TEXT.partition("Of the process")
    listed = {name for name in quoted(rest.partition("Memory of")[0]) if "_" in name} - {"prometheus_client"}
    exposed = {sample.name for metric in admin.registry().collect() for sample in metric.samples}
    assert exposed == listed


def test_what_a_supervisor_counts_a_node_counts_as_well() -> None:
    """Under one name, with one help: both are on one page."""
    own = {family.name: family for family in Metrics().instruments.families}
    shared = [family for family in SUPERVISOR.families if family.name != "gateway_worker_up"]
    assert [(family.kind, family.help) for family in shared] == [
        (own[family.name].kind, own[family.name].help) for family in shared
    ]


def test_names_follow_the_conventions() -> None:
    for name, family in FAMILIES.items():
        assert re.fullmatch("gateway(_[a-z]+)+", name)
        assert name.endswith("_total") is (family.kind == "counter")
        assert isinstance(family, Counts) or name.endswith(("_seconds", "_sockets"))


def test_an_example_uses_metrics_that_exist() -> None:
    suffixes = r"(?:_bucket|_count|_sum)?"
    for name in re.findall(r"gateway_[a-z_]+", TEXT):
        assert name in FAMILIES or re.sub(f"{suffixes}$", "", name) in FAMILIES, name
