"""The proxies of `deploy/`, run as they are shipped: only addresses, certificates and directories are the test's."""

import asyncio
import re
import subprocess
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from shutil import copy
from typing import NamedTuple, Protocol

from tests.clients.install import program
from tests.e2e.world import WAIT_S

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
NODE_FLAGS = "max_fails=0"  # as in the nodes.conf that is shipped; a test compares them
TEMPORARY = "\n".join(
    f"{name}_temp_path {{0}}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


class Upstream(NamedTuple):
    """A node: the port of its devices, and that of its health if it is asked for it."""

    port: int
    admin_port: int = 0


class Proxy(Protocol):
    """`nginx` or `haproxy`: a proxy in front of nodes, on a port of every loopback address; yields its URL."""

    def __call__(
        self, directory: Path, port: int, nodes: Sequence[Upstream], *, tls: bool = False
    ) -> AbstractAsyncContextManager[str]: ...


@asynccontextmanager
async def nginx(directory: Path, port: int, nodes: Sequence[Upstream], *, tls: bool = False) -> AsyncIterator[str]:
    """See `Proxy`."""
    listen = nginx_listen(directory, port) if tls else f"listen {port};"
    write_nginx(directory, listen, "\n".join(f"server 127.0.0.1:{node.port} {NODE_FLAGS};" for node in nodes))
    async with running_nginx(directory, port):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


@asynccontextmanager
async def haproxy(directory: Path, port: int, nodes: Sequence[Upstream], *, tls: bool = False) -> AsyncIterator[str]:
    """See `Proxy`."""
    config = directory / "haproxy.cfg"
    config.write_text(haproxy_config(directory, port, nodes, tls=tls), "utf-8")
    async with _running(haproxy_command(config), directory / "haproxy.log", port):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


@asynccontextmanager
async def running_nginx(directory: Path, port: int) -> AsyncIterator[None]:
    """The nginx whose files are in a directory."""
    async with _running(nginx_command(directory), directory / "error.log", port):
        yield


def write_nginx(directory: Path, listen: str, nodes: str) -> None:
    """Put nginx.conf and the two files that are the operator's into a directory."""
    copy(DEPLOY / "nginx/nginx.conf", directory)
    (directory / "listen.conf").write_text(f"{listen}\n{TEMPORARY.format(directory)}\n", "utf-8")
    (directory / "nodes.conf").write_text(nodes, "utf-8")


def nginx_listen(directory: Path, port: int) -> str:
    """The listen.conf that is shipped, with a certificate and a port of the test."""
    certificate(directory)
    shipped = (DEPLOY / "nginx/listen.conf").read_text("utf-8")
    return replaced(replaced(shipped, r"443 ssl", f"{port} ssl", 2), r"/etc/nginx/", f"{directory}/", 2)


def nginx_command(directory: Path, *flags: str) -> tuple[str, ...]:
    """How to start it in the foreground, or with `-t` to check its configuration."""
    settings = f"daemon off; pid {directory}/nginx.pid;"
    return (program("nginx"), "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log", "-g", settings, *flags)


def haproxy_config(directory: Path, port: int, nodes: Sequence[Upstream], *, tls: bool = True) -> str:
    """The haproxy.cfg that is shipped, with a certificate, a port and nodes of the test."""
    certificate(directory)
    shipped = (DEPLOY / "haproxy/haproxy.cfg").read_text("utf-8")
    shipped = replaced(shipped, r"bind :443 ssl crt /etc/haproxy/", f"bind :{port} ssl crt {directory}/", 1)
    if not tls:
        shipped = replaced(shipped, r"(bind :\d+) .*", r"\1", 1)
    servers = [
        f"    server gw-{number} 127.0.0.1:{node.port} {f'port {node.admin_port}' if node.admin_port else 'no-check'}"
        for number, node in enumerate(nodes, 1)
    ]
    without = replaced(shipped, r"\n    server .*", "", 2)
    return "\n".join([without.rstrip(), *servers, ""])


def haproxy_command(config: Path, *flags: str) -> tuple[str, ...]:
    """How to start it in the foreground, or with `-c` to check its configuration."""
    return (program("haproxy"), "-db", "-f", str(config), *flags)


def replaced(text: str, pattern: str, by: str, times: int) -> str:
    """Replace what must be there so many times."""
    result, found = re.subn(pattern, by, text)
    assert found == times, (pattern, found)
    return result


def certificate(directory: Path) -> None:
    """A self-signed certificate of 127.0.0.1, as both proxies want it."""
    key, pem = directory / "gateway.key", directory / "gateway.pem"
    request = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = (program("openssl"), *request, *names, "-keyout", str(key), "-out", str(pem))
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())


@asynccontextmanager
async def _running(command: Sequence[str], log: Path, port: int) -> AsyncIterator[None]:
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(WAIT_S):
            while not await _accepts(port):
                assert process.returncode is None, log.read_text()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        await asyncio.sleep(0.01)
        return False
    writer.close()
    await writer.wait_closed()
    return True
