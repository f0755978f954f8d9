"""The pages of several processes become one that the library reads as it reads theirs."""

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain
from prometheus_client.samples import Sample

from gateway import admin
from gateway.edge_metrics import SupervisorMetrics
from gateway.exposition import labelled, merged
from gateway.instruments import Instruments
from gateway.metrics import Metrics

NODES = ("gw-1.1", "gw-1.2")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMATS = [("", read_plain), (OPENMETRICS, read_openmetrics)]

formats = pytest.mark.parametrize(("accept", "read"), FORMATS, ids=["plain", "OpenMetrics"])
Read = Callable[[str], list[object]]


def page(accept: str, registry: CollectorRegistry) -> str:
    encode, _ = choose_encoder(accept)
    return str(encode(registry).decode())


def of_node(accept: str, node: str) -> str:
    metrics = Metrics(node=node)
    metrics.node.ready.read(lambda: True)
    histogram = metrics.sessions._events["media_stop"].ack
    histogram.observe(0.3)
    histogram.exemplify(0.3, "4bf92f3577b34da6a3ce929d0e0e4736", 1700000000.0)
    return page(accept, admin.registry(metrics.instruments))


def of_supervisor(accept: str) -> str:
    own = Instruments()
    SupervisorMetrics(own, NODES).up["gw-1.1"].n = 1
    return page(accept, admin.registry(own))


def samples(read: Read, text: str) -> list[Sample]:
    families = read(text)
    names = [family.name for family in families]  # type: ignore[attr-defined]
    families = read(text)
    assert len(names) == len(set(names)), "each family is there once"
    return [sample for family in families for sample in family.samples]  # type: ignore[attr-defined]


@formats
def test_every_sample_is_there_and_says_whose_it_is(accept: str, read: Read) -> None:
    pages = {node: of_node(accept, node) for node in NODES}
    own = of_supervisor(accept)
    found = samples(read, merged(pages, own))
    expected = [
        sample._replace(labels={"instance": node} | sample.labels)
        for node in NODES
        for sample in samples(read, pages[node])
    ]
    expected += samples(read, own)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert len([s for s in found if s.exemplar is not None]) == (len(NODES) if accept else 0)


@formats
def test_without_a_worker_it_is_the_supervisors_page(accept: str, read: Read) -> None:
    own = of_supervisor(accept)
    assert merged({}, own) == own
    assert len(samples(read, own)) > 20


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("up 1.0", 'up{instance="gw-1.1"} 1.0'),
        ('up{a="b c{"} 1.0', 'up{instance="gw-1.1",a="b c{"} 1.0'),
        ('up 1.0 # {trace_id="x"} 0.3', 'up{instance="gw-1.1"} 1.0 # {trace_id="x"} 0.3'),
        ('up{le="+Inf"} 1.0 # {trace_id="x"} 0.3', 'up{instance="gw-1.1",le="+Inf"} 1.0 # {trace_id="x"} 0.3'),
    ],
)
def test_a_label_is_added(sample: str, expected: str) -> None:
    assert labelled(sample, "gw-1.1") == expected
