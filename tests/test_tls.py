"""Certificates: what is usable, what is said of what is not, and how they change under a server."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives import serialization

from gateway import tls
from gateway.addresses import BrokerUrl, Listen
from gateway.admission import Refusal
from gateway.config import Mqtt
from gateway.engine import peers
from gateway.engine.peers import PeerLimits
from gateway.listener import Listener
from gateway.settings import ConfigError
from gateway.tls import Certificate, not_after, server_context
from gateway.watched import Files
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "one")


@asynccontextmanager
async def serving(certificate: Certificate) -> AsyncIterator[str]:
    async with listening(certificate) as (port, _):
        yield port.url


@asynccontextmanager
async def listening(
    certificate: Certificate,
    limits: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
) -> AsyncIterator[tuple[Listener, list[Refusal]]]:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", page)
    refused: list[Refusal] = []
    port = Listener("test", Listen("127.0.0.1", 0), app, refused.append, limits=limits, certificate=certificate)
    await port.start()
    try:
        yield port, refused
    finally:
        await port.close()


async def get(url: str, context: ssl.SSLContext) -> str:
    async with aiohttp.ClientSession() as http, http.get(url, ssl=context) as response:
        return await response.text()


async def spoken(url: str, context: ssl.SSLContext) -> str:
    """The version that both agree on."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), ssl=context)
    version = str(writer.get_extra_info("ssl_object").version())
    writer.close()
    return version


# files


def test_what_is_wrong_with_the_files_is_one_line(tmp_path: Path, authority: Authority) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    encrypted = tmp_path / "encrypted.pem"
    key = serialization.load_pem_private_key(good.key.read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for certificate, private, problem in (
        (tmp_path / "none", good.key, f"{tmp_path}/none: No such file or directory"),
        (good.certificate, tmp_path / "none", f"{tmp_path}/none: No such file or directory"),
        (good.certificate, other.key, "the key does not belong to the certificate"),
        (good.key, good.key, "not a certificate and its key"),
        (good.certificate, encrypted, "the key is encrypted"),
    ):
        with pytest.raises(ValueError, match=problem) as caught:
            Certificate(server_context(), certificate, private)
        assert len(str(caught.value).splitlines()) == 1


def test_certificate_and_key_may_be_in_one_file(tmp_path: Path, authority: Authority) -> None:
    made = authority.issue("one")
    both = tmp_path / "both.pem"
    both.write_bytes(made.key.read_bytes() + made.certificate.read_bytes())
    assert tls.of_server("devices", str(both), "", Files()) is not None


def test_a_pair_that_is_not_one_changes_nothing(authority: Authority) -> None:
    """OpenSSL keeps the certificate of a pair that it refuses."""
    files = authority.issue("one")
    certificate = Certificate(server_context(), *files)
    files.certificate.write_bytes(authority.issue("two").certificate.read_bytes())
    with pytest.raises(ValueError, match="does not belong"):
        certificate.load()
    files.certificate.write_text("nonsense")
    with pytest.raises(ValueError, match="not a certificate"):
        certificate.load()
    asyncio.run(still_serves(certificate, authority))


async def still_serves(certificate: Certificate, authority: Authority) -> None:
    async with serving(certificate) as url:
        assert await get(url, authority.trusting) == "hello"


def test_when_it_ends(tmp_path: Path, authority: Authority) -> None:
    files = authority.issue("one")
    assert Certificate(server_context(), *files).expires_at == not_after(files.certificate)
    decoded = ssl._ssl._test_decode_cert(str(files.certificate))  # type: ignore[attr-defined]
    assert not_after(files.certificate) == ssl.cert_time_to_seconds(decoded["notAfter"])
    pem = files.certificate.read_bytes()
    broken = tmp_path / "broken.pem"
    for size in range(0, len(pem), 40):
        broken.write_bytes(pem[:size])
        if b"END" not in pem[:size]:
            with pytest.raises(ValueError, match="no certificate"):
                not_after(broken)
    with pytest.raises(ValueError, match="No such file"):
        not_after(tmp_path / "none")


def test_settings_that_cannot_be_used_name_themselves(tmp_path: Path, authority: Authority) -> None:
    none, files = str(tmp_path / "none"), authority.issue("one")
    url = BrokerUrl("h", 8883, tls=True)
    for mqtt, setting in (
        (Mqtt(url=url, ca_file=none), "mqtt.ca_file: "),
        (Mqtt(url=url, ca_file=str(files.key)), "mqtt.ca_file: "),
        (Mqtt(url=url, cert_file=none), "mqtt.cert_file: "),
    ):
        with pytest.raises(ConfigError, match=setting):
            tls.to_broker(mqtt, Files())
    with pytest.raises(ConfigError, match=r"admin\.tls_cert: "):
        tls.of_server("admin", none, none, Files())
    assert tls.to_broker(Mqtt(), Files()) == (None, None)
    assert tls.of_server("admin", "", "", Files()) is None


# handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_is_spoken(authority: Authority, version: ssl.TLSVersion) -> None:
    client = authority.trusting
    client.minimum_version = client.maximum_version = version
    async with serving(Certificate(server_context(), *authority.issue("one"))) as url:
        assert await spoken(url, client) == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-GCM-SHA384"),  # no forward secrecy
        (ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES128-SHA"),  # SHA-1
    ],
)
async def test_what_is_not(authority: Authority, version: ssl.TLSVersion, ciphers: str) -> None:
    client = authority.trusting
    client.minimum_version = client.maximum_version = version
    client.set_ciphers(ciphers)
    files, lax = authority.issue("one", key_type=trustme.KeyType.RSA), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.minimum_version = ssl.TLSVersion.TLSv1
    lax.set_ciphers("ALL:@SECLEVEL=0")
    async with serving(Certificate(lax, *files)) as url:
        assert await spoken(url, client), "it is not the client that refuses"
    async with serving(Certificate(server_context(), *files)) as url:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await spoken(url, client)
        assert await get(url, authority.trusting) == "hello"


async def test_who_does_not_shake_hands_is_closed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HANDSHAKE_S", 0.1)
    async with serving(Certificate(server_context(), *authority.issue("one"))) as url:
        for said in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(said)
            async with asyncio.timeout(10):
                assert b"HTTP" not in await reader.read()
            writer.close()


async def test_handshakes_have_places_like_requests(authority: Authority) -> None:
    """They would be as many as there are files, and each costs more than a head: the oldest of an address goes."""
    certificate, limits = Certificate(server_context(), *authority.issue("one")), PeerLimits(max_waiting_per_address=3)
    async with listening(certificate, limits) as (port, refused):
        number = int(port.url.rpartition(":")[2])
        strangers = [await asyncio.open_connection("127.0.0.1", number) for _ in range(5)]
        async with asyncio.timeout(10):
            for reader, _ in strangers[:2]:
                assert await reader.read() == b""
            assert refused == [Refusal.CROWDED_OUT] * 2
            reader, writer = await asyncio.open_connection("127.0.0.1", number, local_addr=("127.0.0.2", 0))
            await writer.start_tls(authority.trusting, server_hostname="127.0.0.1")
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"hello")
            writer.close()
            assert port._peers is not None
            while port._peers.waiting != 3:  # noqa: ASYNC110 - the port has no such event
                await asyncio.sleep(0)
    for reader, writer in strangers:
        assert await reader.read() == b"", "the port has closed, and nobody waits any more"
        writer.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "handshake"]


async def test_a_new_certificate_is_seen_by_who_comes_next(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("one")
    watched = Files()
    certificate = tls.of_server("devices", str(files.certificate), str(files.key), watched)
    assert certificate is not None
    other = Authority(tmp_path, "two")
    watching, first = asyncio.create_task(watched.run()), authority.trusting
    async with serving(certificate) as url, aiohttp.ClientSession() as early:
        async with early.get(url, ssl=first) as response:
            assert await response.text() == "hello"
        other.issue("two", over=files)
        watched.reload()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await get(url, other.trusting) == "hello"
                except aiohttp.ClientConnectorCertificateError:
                    continue
                break
        async with early.get(url, ssl=first) as response:  # on the connection that it has
            assert await response.text() == "hello"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(url, authority.trusting)
    watching.cancel()
    await asyncio.wait({watching})
