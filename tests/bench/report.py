"""The report of a run as Markdown. Pure."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.bench.results import BASELINE, FIGURES, NAIVE, OURS, PEER, Figure, Run, Spread, spread

PAIRS: Final = {(OURS, PEER): "ours ÷ Node", (NAIVE, OURS): "naive ÷ ours", (OURS, BASELINE): "ours ÷ before"}
NAIVE_TIMES: Final = 10.0  # how many times the CPU of a command the naive bridge takes at least
MEMORY_KB: Final = 24.0  # of an idle device with its link, at most
LOAD_BOUND: Final = 0.9  # of a core: from here on the load generator is what is measured
NOISY: Final = 0.05  # of the machine: what others may use before it is worth a word


class Verdict(NamedTuple):
    """A target and what became of it; `found` is None where it was not measured."""

    text: str
    found: Spread | None
    met: bool | None


def markdown(run: Run, plot: str | None = None) -> str:
    """The whole report; `plot` is the name of a picture beside it."""
    lines = ["# Bench", "", *(f"- {what}: {value}" for what, value in run.about.items()), ""]
    lines += [f"> {note}" for note in [*run.notes, *doubts(run)]]
    lines += ["", "Medians of the rounds (least–most). A ratio is the median of the ratios within each round.", ""]
    lines += _comparison(run)
    lines += ["", "## Targets", "", "| target | found | |", "|---|---|---|", *map(_verdict, verdicts(run))]
    lines += _by_devices(run)
    lines += ["", "## What each does for a command", ""]
    lines += [f"- **{who.title}**: {who.keeps}." for who in run.contenders.values()]
    if plot:
        lines += ["", f"![the figures as a picture]({plot})"]
    return "\n".join(lines) + "\n"


def comparison(run: Run) -> str:
    """The table of figures alone."""
    return "\n".join(_comparison(run)) + "\n"


def _comparison(run: Run) -> Iterator[str]:
    pairs = [pair for pair in PAIRS if set(pair) <= set(run.contenders)]
    titles = [who.title for who in run.contenders.values()] + [PAIRS[pair] for pair in pairs]
    yield f"| | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for figure in FIGURES:
        cells = [_spread(spread(run.values(name, figure.key))) for name in run.contenders]
        if any(cells):
            ratios = [spread(run.ratios(figure.key, *pair)) for pair in pairs]
            title = figure.title if figure.title.startswith("–") else f"**{figure.title}**"
            yield f"| {title}, {figure.unit} | {' | '.join([*cells, *map(_spread, ratios)])} |"


def _by_devices(run: Run) -> Iterator[str]:
    """The figures that were taken at several numbers of devices."""
    counts = sorted({int(key.partition("@")[2]) for key in run.keys("") if "@" in key})
    if not counts:
        return
    yield from ("", "## By the number of devices", "", f"| | {' | '.join(f'{count:,}' for count in counts)} |")
    yield "|---" * (len(counts) + 1) + "|"
    named = {figure.key: figure for figure in FIGURES}
    for key in dict.fromkeys(key.partition("@")[0] for key in run.keys("") if "@" in key):
        for name, who in run.contenders.items():
            cells = [_spread(spread(run.values(name, f"{key}@{count}"))) for count in counts]
            if any(cells):
                yield f"| {_plain(named[key])}, {who.title} | {' | '.join(cells)} |"


def _plain(figure: Figure) -> str:
    return f"{figure.title.removeprefix('– ')}, {figure.unit}"


def verdicts(run: Run) -> Iterator[Verdict]:
    """Every target that the gateway has."""
    for figure in FIGURES:
        if figure.target is not None:
            found = spread(run.ratios(figure.key, OURS, PEER))
            text = f"{figure.title} ≤ {figure.target:g} × Node's"
            yield Verdict(text, found, None if found is None else found.median <= figure.target)
    naive = spread(run.ratios("command_us", NAIVE, OURS))
    text = f"command round trip: the naive bridge takes ≥ {NAIVE_TIMES:g} times as much"
    yield Verdict(text, naive, None if naive is None else naive.median >= NAIVE_TIMES)
    memory = spread(run.values(OURS, "memory_kb"))
    text = f"memory per idle device ≤ {MEMORY_KB:g} KB"
    yield Verdict(text, memory, None if memory is None else memory.median <= MEMORY_KB)


def _verdict(verdict: Verdict) -> str:
    word = {True: "met", False: "**missed**", None: "not measured"}[verdict.met]
    return f"| {verdict.text} | {_spread(verdict.found)} | {word} |"


def doubts(run: Run) -> Iterator[str]:
    """Why some figure should not be trusted."""
    for r in run.rounds:
        where = f"round {r.number} of {run.contenders[r.contender].title}, {r.group}"
        if r.failed is not None:
            yield f"No figures from {where}: {r.failed}."
        for key, value in r.figures.items():
            what, bound, _ = key.partition("_load_share")
            if bound and value > LOAD_BOUND:
                yield f"The load generator was the bound ({value:.0%} of a core): {what}, {where}."
    others = [value for r in run.rounds for key, value in r.figures.items() if key.endswith("_others_share")]
    found = spread(others)
    if found is not None and found.most > NOISY:
        yield (
            f"Others used this machine meanwhile: {found.median:.0%} of its CPU in the median of the measurements, "
            f"{found.most:.0%} at most. All figures suffer, latencies and rates most; only ratios say something."
        )


def _spread(found: Spread | None) -> str:
    if found is None or math.isnan(found.median):
        return ""
    if found.values == 1 or number(found.least) == number(found.most):
        return number(found.median)
    return f"{number(found.median)} ({number(found.least)}–{number(found.most)})"


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
