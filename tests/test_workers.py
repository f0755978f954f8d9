"""What workers share, and how the pages of all become one."""

import pickle
import socket

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway import admin
from gateway.addresses import Listen
from gateway.config import MAX_NODE_OF_WORKERS, resolve
from gateway.edge_metrics import SupervisorMetrics
from gateway.instruments import Instruments
from gateway.metrics import Metrics
from gateway.settings import ConfigError
from gateway.supervisor import reserved
from gateway.worker import Worker, node_of
from gateway.workers import WorkerProcess, _merged

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NODES = ("gw-1.1", "gw-1.2")


def page(node: str) -> str:
    metrics = Metrics(node=node)
    metrics.node.ready.read(lambda: True)
    histogram = metrics.sessions._events["media_stop"].ack
    histogram.observe(0.3)
    histogram.exemplify(0.3, TRACE, 1700000000.0)
    return openmetrics(admin.registry(metrics.instruments))


def openmetrics(registry: CollectorRegistry) -> str:
    return str(generate_latest(registry).decode())  # type: ignore[no-untyped-call]


def samples(text: str) -> list[Sample]:
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return [sample for family in families for sample in family.samples]


def test_each_sample_says_whose_it_is_and_a_family_is_there_once() -> None:
    own = Instruments()
    up = SupervisorMetrics(own, NODES).up
    up["gw-1.1"].n = 1
    merged = _merged({node: page(node) for node in NODES}, own.collect())
    names = [metric.name for metric in merged]
    assert len(names) == len(set(names))
    (ready,) = [metric for metric in merged if metric.name == "gateway_ready"]
    assert [(sample.labels, sample.value) for sample in ready.samples] == [({"instance": n}, 1) for n in NODES]
    (lag,) = [metric for metric in merged if metric.name == "gateway_event_loop_lag_seconds"]
    assert {sample.labels.get("instance") for sample in lag.samples} == {*NODES, None}
    (workers,) = [metric for metric in merged if metric.name == "gateway_worker_up"]
    assert [sample.value for sample in workers.samples] == [1, 0]


def test_a_page_of_all_is_openmetrics_with_its_exemplars() -> None:
    merged = _merged({node: page(node) for node in NODES}, ())
    found = samples(openmetrics(admin._Family(*merged)))
    assert len([sample for sample in found if sample.exemplar is not None]) == len(NODES)
    assert len(found) == len(NODES) * len(samples(page("gw-1.1")))


def test_sockets_of_workers_are_short_and_differ() -> None:
    nodes = tuple(node_of("n" * MAX_NODE_OF_WORKERS, number) for number in range(1, 100))
    workers = [Worker(node, nodes, "/tmp/gateway-abcdefgh", b"") for node in nodes]
    paths = [worker.relay_socket(worker.node) for worker in workers] + [worker.admin_socket for worker in workers]
    assert len(set(paths)) == 2 * len(nodes)
    assert max(len(str(path)) for path in paths) <= 107  # unix(7): sun_path, with the NUL at its end
    assert len(nodes[-1]) == 64


def test_a_name_has_room_for_the_number_of_a_worker() -> None:
    longest = {"node": "n" * MAX_NODE_OF_WORKERS, "workers": 2}
    assert resolve(longest, {}, {}).workers == 2
    with pytest.raises(ConfigError) as refused:
        resolve(longest | {"node": "n" * (MAX_NODE_OF_WORKERS + 1)}, {}, {})
    assert refused.value.problems == ["node: expected at most 61 characters, to which workers add their number"]


def test_settings_come_through_the_pipe_as_they_are() -> None:
    config = resolve({}, {"GATEWAY_MQTT_URL": "mqtt://user:pass@127.0.0.1", "GATEWAY_WORKERS": "3"}, {})
    worker = Worker("gw-1.1", NODES, "/nowhere", b"secret")
    told = WorkerProcess(config, worker)._told
    assert pickle.loads(told) == (config, worker)
    assert pickle.loads(told)[0].mqtt.url.password == "pass"


def test_a_port_is_kept_for_workers_and_for_nobody_else() -> None:
    with reserved(Listen("127.0.0.1", 0)) as listen:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((listen.host, listen.port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind((listen.host, listen.port))
            worker.listen()
            with pytest.raises(OSError, match=f"devices.listen: 127.0.0.1:{listen.port}: Address already in use"):
                reserved(listen).__enter__()
    with socket.socket() as stranger:
        stranger.bind((listen.host, listen.port))


def test_a_host_that_is_none_is_said_with_its_setting() -> None:
    with pytest.raises(OSError, match=r"devices\.listen: no\.such\.invalid:80: "):
        reserved(Listen("no.such.invalid", 80)).__enter__()
