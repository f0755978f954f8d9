"""What workers share, and what they are told."""

import pickle
import socket

import pytest

from gateway.addresses import Listen
from gateway.config import MAX_NODE_OF_WORKERS, resolve
from gateway.settings import ConfigError
from gateway.supervisor import reserved
from gateway.worker import Worker, node_of
from gateway.workers import WorkerProcess

NODES = ("gw-1.1", "gw-1.2")


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
