"""A real Prometheus from deploy/prometheus, in a hurry, and a pager that hears its alerts."""

import asyncio
import json
import re
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from aiohttp import web

from gateway.brokers import free_ports
from tests.clients.install import program
from tests.e2e.world import Node

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
FASTER: Final = 100  # each duration in the rules is so much shorter
SCRAPE_S: Final = 0.5  # 5 minutes are 3 s then, and have 6 samples
WAIT_S: Final = 60.0  # for an alert; a machine under load is slow
JOB: Final = "gateway"
# A machine under load answers some scrapes too late. Each of them ends the wait of an alert for its `for`, so that is
# short; and a dozen, but not two, are a node that is down.
FOR_MS: Final = 1200
DOWN: Final = 'up{job=~"gateway.*"} == 0\n        for: ', "6s"
OLD: Final = "gateway_held_oldest_age_seconds) > ", "2"  # an age does not pass any faster
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]|(?<=for: )\d+[smhd]")


def hurried(rules: str) -> str:
    """The rules with each range, offset and `for` a hundredth as long, and no `for` longer than FOR_MS."""
    shorter = _DURATION.sub(_hundredth, rules)
    for before, value in (DOWN, OLD):
        shorter = re.sub(f"(?<={re.escape(before)})\\w+", value, shorter)
    return shorter


def _hundredth(duration: re.Match[str]) -> str:
    ms = int(duration[0][:-1]) * _SECONDS[duration[0][-1]] * 1000 // FASTER
    return f"{min(ms, FOR_MS) if duration.string.endswith('for: ', 0, duration.start()) else ms}ms"


class Pager:
    """Hears of alerts as an Alertmanager does: which fire, and what was said of each that did."""

    def __init__(self) -> None:
        self.url = ""
        self.firing: set[str] = set()
        self.heard: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes([web.post("/api/v2/alerts", self._hear)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _hear(self, request: web.Request) -> web.Response:
        now = datetime.now(UTC)
        for alert in await request.json():
            name = alert["labels"]["alertname"]
            key = json.dumps(alert["labels"], sort_keys=True)
            if datetime.fromisoformat(alert["endsAt"]) <= now:
                self.firing.discard(key)
            else:
                self.firing.add(key)
                self.heard[name] = alert
        async with self._changed:
            self._changed.notify_all()
        return web.json_response({})

    def fires(self, alert: str) -> bool:
        """Whether any alert of this name does."""
        return any(json.loads(key)["alertname"] == alert for key in self.firing)

    async def hears(self, alert: str) -> None:
        """Wait until an alert has fired; it may be over by now."""
        await self._until(lambda: alert in self.heard, f"{alert} does not fire")

    async def forgets(self, alert: str) -> None:
        """Wait until none of this name fires."""
        await self._until(lambda: not self.fires(alert), f"{alert} goes on")

    async def _until(self, condition: Any, otherwise: str) -> None:
        try:
            async with self._changed, asyncio.timeout(WAIT_S):
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"{otherwise}; these fire: {sorted(self.firing)}") from None


class Prometheus:
    """A Prometheus that scrapes whom it is told to."""

    def __init__(self, url: str, targets: Path) -> None:
        self.url = url
        self._targets = targets

    def watch(self, nodes: Mapping[str, Node]) -> None:
        """Scrape these, by name, and no others."""
        entries = [
            {"targets": [node.admin.removeprefix("http://")], "labels": {"instance": name}}
            for name, node in nodes.items()
        ]
        fresh = self._targets.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(entries), "utf-8")
        fresh.rename(self._targets)

    async def get(self, path: str, **parameters: str) -> Any:
        """The data that its API answers with."""
        async with aiohttp.ClientSession() as http, http.post(f"{self.url}/api/v1/{path}", data=parameters) as answer:
            body = await answer.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule with its state."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/api/v1/rules") as answer:
            groups = (await answer.json())["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def numbers(self, expr: str, since: datetime) -> list[float]:
        """Every number that an expression had since then, a second apart."""
        span = {"start": since.isoformat(), "end": datetime.now(UTC).isoformat(), "step": "1"}
        data = await self.get("query_range", query=expr, **span)
        return [float(value) for series in data["result"] for _, value in series["values"]]


@asynccontextmanager
async def prometheus(directory: Path, pager: Pager) -> AsyncIterator[Prometheus]:
    """Run one with the rules of deploy/prometheus, hurried, that tells the pager."""
    home = directory / "prometheus"
    (home / "targets").mkdir(parents=True)
    for name in ("recording.yml", "alerts.yml"):
        (home / name).write_text(hurried((DEPLOY / "prometheus" / name).read_text("utf-8")), "utf-8")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    config["global"] = {name: f"{int(SCRAPE_S * 1000)}ms" for name in config["global"]}
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [pager.url]}]}]}
    (home / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        program("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
        "--rules.alert.resend-delay=1s",  # what fires before it has found the pager would be told a minute later
        "--log.format=json",
        stdout=DEVNULL,
        stderr=PIPE,
    )
    assert process.stderr is not None
    log: list[bytes] = []
    try:
        async with asyncio.timeout(WAIT_S):
            async for line in process.stderr:
                log.append(line)
                if b"Server is ready" in line:
                    break
            else:
                raise AssertionError(b"".join(log).decode())
        reading = asyncio.create_task(process.stderr.read())
        yield Prometheus(f"http://{address}", home / "targets" / "gateway.yml")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    await reading


def expressions(dashboard: Mapping[str, Any], ranges: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Title and expression of each target, annotation and variable, with Grafana's variables filled in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], _filled(target["expr"], ranges)
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], _filled(annotation["expr"], ranges)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            call = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert call
            yield variable["name"], _filled(f"count by ({call[2]}) ({call[1]})", ranges)


def _filled(expr: str, ranges: Mapping[str, str]) -> str:
    for name, value in {"job": JOB, "node": ".*", "event": ".*", **ranges}.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr
