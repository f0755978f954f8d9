"""Makes Grafana's JSON of the dashboards from the YAML in source/: `python deploy/grafana/build.py [DIRECTORY]`.

What a panel shows stands in source/; how panels look, in one way for all, stands here. Made for Grafana 10.3 and newer.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml
from msgspec import Struct

HERE: Final = Path(__file__).parent
WIDTH: Final = 24  # columns of Grafana's grid
SCHEMA_VERSION: Final = 39  # of Grafana 10.3; newer ones migrate it
RUNBOOK: Final = "https://runbooks.example/gateway/RUNBOOK.md"  # as in ../prometheus/alerts.yml
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
TAG: Final = "gateway"  # by it the dashboards link to each other


class Query(Struct, forbid_unknown_fields=True):
    """One of the two: `expr` over the chosen time, or `instant` at its end."""

    expr: str = ""
    instant: str = ""
    legend: str = ""
    exemplar: bool = False


class Panel(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a panel shows; `size` is its width and height on the grid, `alerts` are those it helps to understand."""

    title: str
    description: str
    unit: str
    size: tuple[int, int]
    queries: list[Query]
    kind: Literal["series", "stat", "heatmap", "table", "states"] = "series"
    alerts: list[str] = []
    thresholds: dict[str | float, str] = msgspec.field(default_factory=lambda: {"base": "transparent"})
    """Colours from a value on; `base` is below all."""
    decimals: int | None = None
    no_value: str | None = None
    stack: bool = False
    log: bool = False
    legend: Literal["table", "hidden"] = "table"
    graph: bool = False
    """A stat's small curve."""
    states: dict[int, tuple[str, str]] = {}
    """Text and colour of each value."""
    columns: dict[str, str] = {}
    """Labels that a table shows, and what they are called."""
    matrix: tuple[str, str] | None = None
    """Labels for the rows and the columns of a table."""


class Row(Struct, forbid_unknown_fields=True):
    """Panels under a heading; without a title there is none."""

    title: str
    panels: list[Panel]


class Dashboard(Struct, forbid_unknown_fields=True):
    """One file of source/."""

    title: str
    uid: str
    description: str
    variables: list[Literal["node", "event"]]
    rows: list[Row]


def dashboard(source: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    return {
        "uid": source.uid,
        "title": source.title,
        "description": source.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # a shared crosshair
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables(source.variables))},
        "annotations": {"list": list(_annotations())},
        "links": [
            {"type": "dashboards", "title": "Gateway", "tags": [TAG], "includeVars": True, "keepTime": True},
            {"type": "link", "title": "Runbook", "icon": "doc", "url": "${runbook}", "targetBlank": True},
        ],
        "panels": list(_placed(source.rows)),
    }


def _variables(names: list[Literal["node", "event"]]) -> Iterator[dict[str, Any]]:
    yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    yield {"type": "constant", "name": "runbook", "query": RUNBOOK, "hide": 2}
    yield _variable("job", "Job", "label_values(gateway_build_info, job)")
    queries = {
        "node": ("Node", 'label_values(gateway_build_info{job="$job"}, instance)'),
        "event": ("Event", 'label_values(gateway_commands_total{job="$job"}, event)'),
    }
    for name in names:
        every = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
        yield {**_variable(name, *queries[name]), **every}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the chosen time changes
        "sort": 1,
    }


def _annotations() -> Iterator[dict[str, Any]]:
    new = 'gateway_build_info{job="$job"} unless on (job, instance, version) gateway_build_info{job="$job"} offset 2m'
    firing = 'count by (alertname, severity) (ALERTS{alertstate="firing",alertname=~"Gateway.*"})'
    for name, color, title, tags, expr in (
        ("Deploys", "blue", "{{version}} on {{instance}}", "version", new),
        ("Alerts", "red", "{{alertname}}", "severity", firing),
    ):
        yield {
            "name": name,
            "enable": True,
            "iconColor": color,
            "datasource": DATASOURCE,
            "expr": expr,
            "titleFormat": title,
            "tagKeys": tags,
            "step": "30s",
        }


def _placed(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Each row and panel with its place and a number."""
    number = y = 0
    for row in rows:
        if row.title:
            number += 1
            place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
            y += 1
        x = below = 0
        for panel in row.panels:
            number += 1
            width, height = panel.size
            if x + width > WIDTH:
                x, y, below = 0, y + below, 0
            yield {"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **_panel(panel)}
            x, below = x + width, max(below, height)
        y += below


def _panel(panel: Panel) -> dict[str, Any]:
    look = {"series": _series, "stat": _stat, "heatmap": _heatmap, "table": _table, "states": _states}[panel.kind](
        panel
    )
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel.thresholds)}
    optional = {"decimals": panel.decimals, "noValue": panel.no_value}
    defaults |= {name: value for name, value in optional.items() if value is not None}
    look_of_fields = look.pop("defaults", {})
    overrides = look.pop("overrides", [])
    return {
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "links": [
            {"title": f"Runbook: {alert}", "url": f"${{runbook}}#{alert.lower()}", "targetBlank": True}
            for alert in panel.alerts
        ],
        "targets": [_target(letter, query, panel) for letter, query in zip("ABCDEFGH", panel.queries, strict=False)],
        "fieldConfig": {"defaults": defaults | look_of_fields, "overrides": overrides},
        **look,
    }


def _target(letter: str, query: Query, panel: Panel) -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": (query.expr or query.instant).strip(),
        "instant": bool(query.instant),
        "range": bool(query.expr),
        "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
        "legendFormat": query.legend or ("{{le}}" if panel.kind == "heatmap" else "__auto"),
        "exemplar": query.exemplar,
    }


def _thresholds(colours: dict[str | float, str]) -> dict[str, Any]:
    steps = [{"value": None if value == "base" else value, "color": colour} for value, colour in colours.items()]
    return {"mode": "absolute", "steps": steps}


def _series(panel: Panel) -> dict[str, Any]:
    custom: dict[str, Any] = {
        "drawStyle": "line",
        "fillOpacity": 40 if panel.stack else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"},
        "thresholdsStyle": {"mode": "dashed" if len(panel.thresholds) > 1 else "off"},
    }
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
    return {
        "type": "timeseries",
        "defaults": {"custom": custom} | ({} if panel.log else {"min": 0}),
        "options": {
            "legend": legend if panel.legend == "table" else legend | {"displayMode": "list", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "type": "stat",
        "options": {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "colorMode": "background" if len(panel.thresholds) > 1 else "value",
            "graphMode": "area" if panel.graph else "none",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        },
    }


def _heatmap(panel: Panel) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5, "steps": 64},
            "exemplars": {"color": "rgba(31, 120, 193, 0.9)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        },
    }


def _table(panel: Panel) -> dict[str, Any]:
    if panel.matrix is not None:
        row, column = panel.matrix
        fields = {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "null"}
        shaped = [{"id": "groupingToMatrix", "options": fields}]
    else:
        include = {"include": {"pattern": f"^({'|'.join(panel.columns)})$"}}
        order = {name: index for index, name in enumerate(panel.columns)}
        shaped = [
            {"id": "filterFieldsByName", "options": include},
            {"id": "organize", "options": {"renameByName": panel.columns, "indexByName": order}},
        ]
    return {"type": "table", "options": {"showHeader": True, "cellHeight": "sm"}, "transformations": shaped}


def _states(panel: Panel) -> dict[str, Any]:
    values = {
        str(value): {"index": index, "text": text, "color": colour}
        for index, (value, (text, colour)) in enumerate(panel.states.items())
    }
    return {
        "type": "state-timeline",
        "defaults": {
            "custom": {"fillOpacity": 80, "lineWidth": 0},
            "mappings": [{"type": "value", "options": values}],
        },
        "options": {
            "mergeValues": True,
            "showValue": "auto",
            "rowHeight": 0.8,
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def main(directory: Path) -> None:
    """Write a JSON file into the directory for each file of source/."""
    for path in sorted((HERE / "source").glob("*.yml")):
        source = msgspec.convert(yaml.safe_load(path.read_text("utf-8")), Dashboard)
        text = json.dumps(dashboard(source), indent=2, ensure_ascii=False)
        (directory / f"{path.stem}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards")
