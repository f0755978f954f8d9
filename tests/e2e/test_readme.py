"""What the README tells a newcomer to run, run: its programs as they stand there, but for the addresses."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.brokers import LocalBroker
from tests.clients.install import installed, program
from tests.e2e.world import WAIT_S, Node, Service, device, gateway

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")
SERIAL = "AC4178234411"


def block(language: str, word: str) -> str:
    """The block of the README in a language that has this word."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text)
    return str(found)


def shell(start: str) -> str:
    """The shell line of the README that begins so, without its comment."""
    found = next(line for line in README.splitlines() if line.startswith(start))
    return re.sub(" +#.*", "", found)


@asynccontextmanager
async def running(*command: str, **environ: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=os.environ | environ)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode().rstrip("\n")


@asynccontextmanager
async def simulated(node: Node) -> AsyncIterator[Process]:
    command = shell("gateway simulate").split()[1:]
    async with running(sys.executable, "-um", "gateway", *command, "--url", node.devices) as plate:
        assert await line(plate) == f"{SERIAL}  online"
        yield plate


def python(word: str, broker: LocalBroker) -> tuple[str, ...]:
    return (sys.executable, "-uc", block("python", word).replace("1883", broker.url.rpartition(":")[2]))


def javascript(word: str, node: Node) -> str:
    code = block("js", word).replace("socket.io-client", str(installed("sio48")))
    return code.replace("http://127.0.0.1:8080", node.devices)


async def test_the_shell_asks_a_simulated_device(broker: LocalBroker, node: Node) -> None:
    async with simulated(node) as plate:
        for start in ("gateway call AC4178234411 dev", "gateway call AC4178234411 bind"):
            words = shell(start).replace("'{\"id\": 1}'", '{"id":1}').split()[1:]
            async with running(sys.executable, "-m", "gateway", *words, GATEWAY_MQTT_URL=broker.url) as call:
                assert json.loads(await line(call))["status"] == "acked"
                assert await call.wait() == 0
        assert [await line(plate) for _ in range(2)] == [
            f"{SERIAL}  device_status",
            f'{SERIAL}  bind_class {{"id":1}}',
        ]
        plate.terminate()
        assert await line(plate) == f"{SERIAL}  away"
        assert await asyncio.wait_for(plate.wait(), WAIT_S) == 0


async def test_a_call_says_that_it_is_queued(broker: LocalBroker, node: Node) -> None:
    async with simulated(node) as plate:
        plate.terminate()
        await plate.wait()
    command = ("gateway", "call", SERIAL, "text_stop", '{"stop":true}', "--qos", "1", "--ttl", "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdout=PIPE, stderr=PIPE, env=os.environ | {"GATEWAY_MQTT_URL": broker.url}
    )
    output, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (json.loads(errors)["status"], json.loads(output)["status"]) == ("queued", "expired")
    assert process.returncode == 1


@pytest.mark.mosquitto_only("the embedded broker keeps what has MQTT 5 properties from MQTT 3.1.1")
async def test_the_shell_asks_with_the_clients_of_mosquitto(broker: LocalBroker, node: Node) -> None:
    rr = program("mosquitto_rr")
    async with simulated(node):
        words = shell("mosquitto_rr").replace("'{\"id\": 1}'", '{"id":1}').split()[1:]
        async with running(rr, *words, "-p", broker.url.rpartition(":")[2]) as asked:
            assert json.loads(await line(asked))["status"] == "acked"
        port = broker.url_v311.rpartition(":")[2]
        watch = shell("mosquitto_sub -V 311").replace("'", "").split()[1:]
        ask = shell("mosquitto_pub -V 311").split()[1:]
        async with running(program("mosquitto_sub"), *watch, "-p", port) as watching:
            seen = asyncio.create_task(line(watching))
            while not seen.done():  # it does not say when it has subscribed
                async with running(program("mosquitto_pub"), *ask, "-p", port) as asking:
                    assert await asking.wait() == 0
                await asyncio.wait({seen}, timeout=0.1)
        topic, _, outcome = seen.result().partition(" ")
        assert topic.endswith(f"{SERIAL}/acks/device_status/my-id")
        assert json.loads(outcome)["status"] == "acked"


async def test_the_program_of_a_service(broker: LocalBroker, node: Node) -> None:
    async with simulated(node), running(*python("on_queued", broker)) as program:
        assert await line(program) == "acked {'ack': True, 'status': 'on'}"
        assert (await line(program)).startswith(("acked", "held for"))


async def test_the_program_that_replies(broker: LocalBroker, node: Node) -> None:
    async with running(*python("fleet.answer", broker)) as program, device(node, SERIAL) as plate:
        seen = asyncio.create_task(line(program))
        while not seen.done():  # it does not say when it has subscribed
            await plate.client.emit("hello", {"n": 1})
            await asyncio.wait({seen}, timeout=0.1)
        assert seen.result() == f"{SERIAL} hello {{'n': 1}}"
        assert await plate.client.call("question", {"n": 2}, timeout=int(WAIT_S)) == {"ok": True}


async def test_the_program_with_nothing_but_mqtt_5(broker: LocalBroker, node: Node) -> None:
    async with simulated(node), running(*python("ResponseTopic", broker)) as program:
        assert await line(program) == "b'1' acked {'ack': True, 'status': 'on'}"


@pytest.mark.mosquitto_only("the embedded broker does not say 0x10")
async def test_the_program_is_told_that_nobody_knows_the_device(broker: LocalBroker, node: Node) -> None:
    async with running(*python("ResponseTopic", broker)) as program:
        assert await line(program) == "no gateway knows this device"


@pytest.mark.mosquitto_only("the embedded broker keeps what has MQTT 5 properties from MQTT 3.1.1")
async def test_the_program_with_mqtt_3_1_1(broker: LocalBroker, node: Node) -> None:
    async with device(node, SERIAL) as plate:
        plate.answers["device_status"] = lambda: {"ack": True, "status": "sleep"}
        async with running(*python("MQTTv311", broker)) as program:
            told = f"{SERIAL} device_status my-id acked {{'ack': True, 'status': 'sleep'}}"
            assert await line(program) == told
            assert await plate.client.call("question", {"n": 1}, timeout=int(WAIT_S)) == {"ok": True}
            assert await line(program) == f"{SERIAL} question {{'n': 1}}"


async def test_the_device_in_javascript(node: Node, api: Service) -> None:
    async with running(program("node"), "-e", javascript("auth:ok", node)) as plate:
        assert await line(plate) == "authenticated"
        await api.send(f"devices/{SERIAL}/commands/device_status")
        outcome = await api.outcome(f"devices/{SERIAL}/acks/device_status")
        assert outcome["data"] == {"ack": True, "status": "on"}


async def test_a_viewer_in_javascript_with_a_token_from_the_shell(broker: LocalBroker) -> None:
    environ = {"GATEWAY_TOKENS_ALGORITHM": "HS256", "GATEWAY_TOKEN_SECRET": "0123456789abcdef0123456789abcdef"}
    async with gateway(broker.url, environ=environ) as node, device(node, SERIAL) as plate:
        async with running(sys.executable, "-m", *shell("gateway token").split(), **environ) as minting:
            token = await line(minting)
        code = f"const token = {token!r};\n{javascript('cmd_result', node)}"
        async with running(program("node"), "-e", code) as page:
            assert await line(page) == "joined"
            await plate.client.emit("cmd_result", {"result": "ok"})
            assert await line(page) == "{ result: 'ok' }"
