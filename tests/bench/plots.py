"""A run as a picture; needs matplotlib (`pip install '.[bench]'`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.bench.report import number
from tests.bench.results import FIGURES, Run, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {
    "bare": "#9467bd",
    "gateway": "#0072b2",
    "node": "#e69f00",
    "naive": "#999999",
    "mqtt": "#56b4e9",
    "baseline": "#cc79a7",
    "workers": "#009e73",
}  # Okabe and Ito
BARS: Final = ("command_us", "event_us", "room_us", "connect_us", "memory_kb", "heartbeat_us")
RATE: Final = 2_000
ABOVE: Final = "offset points"
PERCENTILES: Final = ("p50", "p95", "p99")


class Unavailable(Exception):
    """matplotlib is not installed."""


def draw(run: Run, path: Path) -> None:
    """Write the picture as PNG. Raises Unavailable."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise Unavailable("no picture without matplotlib: pip install '.[bench]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 4, figsize=(16, 7.5), layout="constrained")
    axes = list(grid.flat)
    for key, ax in zip(BARS, axes, strict=False):
        _bars(run, key, ax)
    _latency(run, axes[6])
    _scale(run, axes[7])
    about = " · ".join(run.about[what] for what in ("machine", "broker", "date") if what in run.about)
    figure.suptitle(f"Less is better everywhere. {about}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(run: Run, key: str, ax: "Axes") -> None:
    """One bar for each contender, and the range of its rounds."""
    figure = next(figure for figure in FIGURES if figure.key == key)
    found = {name: value for name in run.contenders if (value := spread(run.values(name, key))) is not None}
    for place, (name, value) in enumerate(found.items()):
        error = [[value.median - value.least], [value.most - value.median]]
        ax.bar(place, value.median, color=COLOURS[name], yerr=error, capsize=3)
        ax.annotate(number(value.median), (place, value.most), (0, 4), ha="center", fontsize=8, textcoords=ABOVE)
    ax.set_xticks(range(len(found)), list(found))
    ax.margins(y=0.1)
    _titled(ax, figure.title, figure.unit)


def _latency(run: Run, ax: "Axes") -> None:
    for name in run.contenders:
        found = [spread(run.values(name, f"{percent}_ms_{RATE}")) for percent in PERCENTILES]
        medians = [value.median for value in found if value is not None]
        if len(medians) == len(PERCENTILES):
            ax.plot(PERCENTILES, medians, marker="o", color=COLOURS[name], label=name)
            ax.set_yscale("log")
    _titled(ax, f"latency at {RATE:,}/s", "ms", legend=True)


def _scale(run: Run, ax: "Axes") -> None:
    for name in run.contenders:
        points: list[tuple[int, Any]] = []
        for key in run.keys("command_us@"):
            value = spread(run.values(name, key))
            if value is not None:
                points.append((int(key.partition("@")[2]), value.median))
        if points:
            ax.plot(*zip(*sorted(points), strict=True), marker="o", color=COLOURS[name], label=name)
            ax.set_xscale("log")
            ax.set_yscale("log")
    _titled(ax, "command round trip, by devices", "µs CPU", legend=True)


def _titled(ax: "Axes", title: str, unit: str, *, legend: bool = False) -> None:
    if not ax.has_data():
        ax.set_axis_off()
        return
    ax.set_title(title, fontsize=10)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(fontsize=8, frameon=False)
