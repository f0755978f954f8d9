"""Tokens that nobody signed: each is refused with a reason, and counted; who has a good one or a key is served."""

import json
import time
from itertools import cycle

import jwt
import pytest

from gateway.brokers import LocalBroker
from gateway.tokens import mint
from tests.e2e.hostile import RawSocket, bear, counted
from tests.e2e.test_viewers import ENVIRON, SECRET, join, token, viewer
from tests.e2e.world import Service, device, gateway
from tests.test_tokens import by_hand

GOOD = {"rooms": ["*"], "exp": int(time.time()) + 3600, "sub": "mallory"}
HEADER, PAYLOAD, SIGNATURE = token("AC1").split(".")
OTHERS_PAYLOAD = mint(GOOD, SECRET[::-1].encode()).split(".")[1]
BAD = {
    "signed by somebody else": (mint(GOOD, SECRET[::-1].encode()), "token not valid"),
    "with other claims": (f"{HEADER}.{OTHERS_PAYLOAD}.{SIGNATURE}", "token not valid"),
    "not signed": (f"{HEADER}.{PAYLOAD}.", "token not valid"),
    "expired": (token("AC1", ttl_s=-1), "token expired"),
    "for ever": (mint({"rooms": ["*"]}, SECRET.encode()), "token without exp"),
    "of no algorithm": (by_hand({"alg": "none", "typ": "JWT"}, GOOD), "token not valid"),
    "of no algorithm, but signed": (by_hand({"alg": "none", "typ": "JWT"}, GOOD, SECRET.encode()), "token not valid"),
    "of another algorithm": (jwt.encode(GOOD, SECRET * 2, "HS512"), "token not valid"),
    "large": ("x" * 60_000, "token not valid"),
}


@pytest.fixture
def kind() -> str:
    return "mosquitto"


async def test_a_flood_of_bad_tokens(broker: LocalBroker, api: Service) -> None:
    async with gateway(broker.url, environ=ENVIRON) as node, device(node, "BYSTANDER") as bystander:
        tokens = cycle(BAD.items())

        async def attack() -> None:
            name, (given, problem) = next(tokens)
            async with RawSocket.connect(node, source="127.0.0.2") as peer:
                peer.text(f'40{{"token":"{given}"}}')
                assert json.loads((await peer.until("44"))[2:]) == {"message": problem}, name

        async def seen() -> bool:
            async with viewer(node, token("BYSTANDER")) as page:
                assert await join(page, "BYSTANDER") == "join_room:ok"
            return await counted(node, "gateway_refusals_total", reason="token") > 10 * len(BAD)

        await bear(node, api, bystander, attack, seen)
