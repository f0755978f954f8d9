"""What relays between nodes, before any request."""

from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.app import _relay
from gateway.config import Config
from gateway.config import Relay as Settings
from gateway.metrics import Metrics
from gateway.relay import Relay, tag_of
from gateway.settings import ConfigError

SECRET = "0123456789abcdef0123456789abcdef"


def made(environ: dict[str, str], **settings: Any) -> Relay | None:
    config = msgspec.structs.replace(Config(), relay=Settings(**settings))
    return _relay(config, environ, {}, Metrics(), None)


def test_there_is_none_without_an_address() -> None:
    assert made({"GATEWAY_RELAY_SECRET": SECRET}) is None


@pytest.mark.parametrize("secret", ["", "short"])
def test_the_secret_must_be_there_and_is_never_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made({"GATEWAY_RELAY_SECRET": secret}, advertise="http://10.0.0.1")
    assert "GATEWAY_RELAY_SECRET" in str(refused.value)
    assert "short" not in str(refused.value)


def test_a_session_id_names_its_node_and_nothing_else() -> None:
    relay = made({"GATEWAY_RELAY_SECRET": SECRET}, advertise="http://10.0.0.1")
    assert relay is not None
    one, two = relay.new_sid(), relay.new_sid()
    assert one != two
    assert one.rpartition(".")[0] == two.rpartition(".")[0] == tag_of(Config().node)
    assert Config().node not in one


async def test_a_node_that_stops_answers_what_still_comes_as_unknown(unused_tcp_port: int) -> None:
    """A proxy keeps its connections, and sends polls of other nodes' sessions until the last one is closed."""
    said: list[str] = []
    peers = {tag_of("gw-2"): f"http://127.0.0.1:{unused_tcp_port}"}
    relay = Relay("gw-1", SECRET.encode(), peers, max_requests=1, max_bytes=100, poll_s=20.0, relayed=said.append)
    poll = make_mocked_request("GET", "/socket/socket.io/?transport=polling")
    assert await relay.serve(poll, f"{tag_of('gw-2')}.sid") is None
    await relay.close()
    assert await relay.serve(poll, f"{tag_of('gw-2')}.sid") is None
    assert said == ["failed", "gone"]
