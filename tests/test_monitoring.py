"""What watches the gateway, as it is shipped: rules, runbook and dashboards fit together and to the metrics."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.clients.install import program

DEPLOY: Final = Path(__file__).parent.parent / "deploy"
PROMETHEUS: Final = DEPLOY / "prometheus"
RUNBOOK: Final = (DEPLOY / "RUNBOOK.md").read_text("utf-8")
RULES: Final = [
    rule
    for name in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / name).read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}
DASHBOARDS: Final = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
WITHOUT_A_PANEL: Final = {"GatewayAbsent"}  # there is nothing to show
_METRIC: Final = re.compile(r"\b(?:\w+:)?gateway_\w+(?::\w+)?")
_HISTOGRAM: Final = re.compile(r"_(bucket|sum|count)$")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that are no headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """What rules and dashboards ask Prometheus."""
    asked = [rule["expr"] for rule in RULES]
    for dashboard in DASHBOARDS.values():
        asked += [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
        asked += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    return asked


@pytest.mark.parametrize(
    "command", [("check", "config", "prometheus.yml"), ("check", "rules", "recording.yml", "alerts.yml"),
                ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)  # fmt: skip
def test_promtool(command: tuple[str, ...]) -> None:
    done = subprocess.run([program("promtool"), *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_tests_every_alert() -> None:
    text = (PROMETHEUS / "alerts_test.yml").read_text("utf-8")
    assert {name for name in ALERTS if f'alertname="{name}"' not in text} == set()


def test_every_alert_has_a_section_in_the_runbook_and_the_other_way_round() -> None:
    sections = dict(re.findall(r"^### (Gateway\w+)\n\n`(\w+)`", RUNBOOK, re.MULTILINE))
    assert sections == {name: alert["labels"]["severity"] for name, alert in ALERTS.items()}
    assert set(re.findall(r"\(#(\w+)\)", RUNBOOK)) <= {name.lower() for name in sections}
    for section in re.split(r"^### ", RUNBOOK, flags=re.MULTILINE)[1:]:
        text = section.lower()
        assert "**means**" in text, section
        assert "**look**" in text, section
        assert re.search(r"\*\*do\*\*", text), section


def test_every_alert_leads_to_its_section() -> None:
    (base,) = {alert["annotations"]["runbook_url"].partition("#")[0] for alert in ALERTS.values()}
    for name, alert in ALERTS.items():
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"{base}#{name.lower()}"
        assert alert["labels"].keys() == {"severity"}
    for dashboard in DASHBOARDS.values():
        assert {v["query"] for v in dashboard["templating"]["list"] if v["name"] == "runbook"} == {base}


def test_every_metric_is_looked_at_and_there_is_no_other() -> None:
    documented = set(re.findall(r"^\| `(gateway_\w+)` \|", (DEPLOY / "METRICS.md").read_text("utf-8"), re.MULTILINE))
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = {name for expr in expressions() for name in _METRIC.findall(expr)}
    plain = {name if name in documented | recorded else _HISTOGRAM.sub("", name) for name in asked}
    assert plain - recorded == documented
    assert recorded - {name for name in recorded if ":ratio_rate" in name} <= plain


def test_the_dashboards_are_those_of_their_source(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DEPLOY / "grafana" / "build.py", tmp_path], check=True)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert made == {
        f"{name}.json": (DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text("utf-8") for name in DASHBOARDS
    }


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_everything_in_a_dashboard(name: str) -> None:
    """Grafana's own types keep what they know of it: nothing is left out."""
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARDS[name])))
    assert DASHBOARDS[name] == within(DASHBOARDS[name], kept)


def within(wanted: Any, found: Any) -> Any:
    """`found` without what `wanted` does not have, which is Grafana's defaults."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: within(wanted.get(key), value) for key, value in found.items() if key in wanted}
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [within(*pair) for pair in zip(wanted, found, strict=True)]
    return found


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_explains_itself(name: str) -> None:
    dashboard = DASHBOARDS[name]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    for panel in panels(dashboard):
        assert panel["description"].endswith((".", ".)")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        several = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(several)) == len(several), panel["title"]
    assert dashboard["uid"] == f"gateway-{name}"
    assert dashboard["annotations"]["list"][0]["name"] == "Deploys"


def test_every_alert_is_linked_from_a_panel() -> None:
    links = [link["url"] for board in DASHBOARDS.values() for panel in panels(board) for link in panel["links"]]
    assert {url.removeprefix("${runbook}#") for url in links} == {n.lower() for n in ALERTS.keys() - WITHOUT_A_PANEL}


def test_panels_do_not_overlap() -> None:
    for name, dashboard in DASHBOARDS.items():
        taken: dict[tuple[int, int], str] = {}
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"], (name, panel["title"])
