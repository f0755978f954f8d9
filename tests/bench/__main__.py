"""The command: `python -m tests.bench`, from the root of a checkout."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import time
import timeit
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import uvloop

from gateway import is_compiled
from gateway.brokers import BrokerUnavailable
from tests.bench import contenders, parts, plots, profile, publish, report
from tests.bench.contenders import Contender
from tests.bench.plan import PARTS, QUICK, Plan, fitting
from tests.bench.results import OURS, Round, Run, Who
from tests.bench.workloads import Stuck

KEY_FIGURES: Final = (
    "connect_us",
    "command_us",
    "command_rate",
    "p99_ms_2000",
    "event_us",
    "room_us",
    "memory_kb",
    "heartbeat_us",
)
NODE_MODULES: Final = ("socket.io", "mqtt")


def _names(known: Any) -> Callable[[click.Context, click.Parameter, str | None], tuple[str, ...] | None]:
    def read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
        if text is None:
            return None
        names = tuple(text.split(","))
        if unknown := sorted(set(names) - set(known)):
            raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return names

    return read


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise click.BadParameter("expected numbers with commas between them") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--quick", is_flag=True, help="One short round of everything, in two minutes; shows the order of things.")
@click.option("--parts", callback=_names(PARTS), help=f"Of {', '.join(PARTS)}; all by default.")
@click.option(
    "--contenders",
    callback=_names(contenders.CONTENDERS),
    help=f"Of {', '.join(contenders.CONTENDERS)}; by default {', '.join(Plan().contenders)}.",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each part; by default fewer of the long ones.")
@click.option("--devices", type=click.IntRange(1), help=f"Devices of most parts ({Plan().devices:,}).")
@click.option("--idle-devices", type=click.IntRange(1), help=f"Devices that do nothing ({Plan().idle_devices:,}).")
@click.option("--scale", callback=_numbers, help="Numbers of devices for the part of that name (100,1000,5000,10000).")
@click.option("--seconds", type=click.FloatRange(0.1), help=f"Of each measurement ({Plan().seconds:g}).")
@click.option("--minutes", type=click.FloatRange(0.1), help="No round begins that would not end by then (15).")
@click.option(
    "--out", type=click.Path(path_type=Path), default="bench-results", show_default=True, help="Where to save."
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout, to compare with.",
)
@click.option("--profile", is_flag=True, help="Sample the gateway with py-spy; its figures then say nothing.")
@click.option("--publish", is_flag=True, help="Put the table and the picture into README.md.")
def main(out: Path, *, quick: bool, publish: bool, baseline: Path | None, **options: Any) -> None:
    """Measure the gateway against what anyone would pick instead, all on this machine.

    Each round starts a fresh broker and a fresh process of each contender in turn. CPU is that of the process, from
    /proc, never wall time. Saves results.json, report.md and report.png.
    """
    if rounds := options.pop("rounds"):
        options |= {"rounds": rounds, "idle_rounds": rounds, "scale_rounds": rounds}
    given = {name: value for name, value in options.items() if value is not None}
    plan, note = fitting((QUICK if quick else Plan())._replace(**given))
    everyone = [contenders.CONTENDERS[name] for name in plan.contenders]
    if baseline is not None:
        everyone.append(contenders.baseline(baseline))
    try:
        run = uvloop.run(_run(plan, everyone, [note] if note else [], out))
    except (BrokerUnavailable, contenders.Unusable) as problem:
        raise click.ClickException(str(problem)) from None
    _save(run, out, to_readme=publish)
    if any(r.failed for r in run.rounds if r.contender == OURS):
        sys.exit(1)


async def _run(plan: Plan, everyone: list[Contender], notes: list[str], out: Path) -> Run:
    if "node" in plan.contenders:
        contenders.install()
    out.mkdir(parents=True, exist_ok=True)
    if plan.profile:
        notes = [*notes, "Sampled by py-spy: the figures say nothing, the profiles are beside this report."]
    for note in notes:
        _say(note)
    rounds: list[Round] = []
    begun = time.monotonic()
    for group, number in _schedule(plan, lambda: time.monotonic() - begun):
        _say(f"round {number} of {plan.groups[group]}: {', '.join(_parts_of(group, plan))}")
        turn = number % len(everyone)  # who comes first comes last in the next round
        for who in (*everyone[turn:], *everyone[:turn]):
            found = await _round(group, number, who, plan, out)
            rounds.append(found)
    done = {group: max((r.number for r in rounds if r.group == group), default=0) for group in plan.groups}
    cut = [f"{group} {done[group]} of {planned}" for group, planned in plan.groups.items() if done[group] < planned]
    if cut:
        notes = [*notes, f"No time for all rounds: {', '.join(cut)} (--minutes {plan.minutes:g})."]
    sizes = {name: value for name, value in plan._asdict().items() if type(value) in (int, float)}
    present = {who.name: Who(who.title, who.keeps) for who in everyone}
    return Run(_about(plan, rounds), sizes | {"scale": list(plan.scale)}, present, rounds, notes)


def _schedule(plan: Plan, passed_s: Callable[[], float]) -> Iterator[tuple[str, int]]:
    """Groups and numbers of rounds, the groups in turn, as long as there is time for one more like the last."""
    took: dict[str, float] = {}
    for number in range(1, max(plan.groups.values()) + 1):
        for group, rounds in plan.groups.items():
            begun = passed_s()
            if number <= rounds and begun + took.get(group, 0.0) <= plan.minutes * 60:
                yield group, number
                took[group] = max(took.get(group, 0.0), passed_s() - begun)


async def _round(group: str, number: int, who: Contender, plan: Plan, out: Path) -> Round:
    begun = time.monotonic()

    @asynccontextmanager
    async def sampled(part: str, pid: int) -> AsyncIterator[None]:
        if plan.profile and who.name == OURS:
            async with profile.sampled(pid, out / f"profile-{part}.txt"):
                yield
        else:
            yield

    try:
        found = Round(who.name, group, number, await parts.run(group, who, plan, sampled))
    except (contenders.Unusable, Stuck, TimeoutError, asyncio.CancelledError, OSError, ExceptionGroup) as problem:
        if isinstance(problem, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
            raise
        found = Round(who.name, group, number, failed=str(problem) or type(problem).__name__)
    figures = "  ".join(f"{key} {found.figures[key]:,.4g}" for key in KEY_FIGURES if key in found.figures)
    _say(f"  {who.name:8} {time.monotonic() - begun:5.1f} s  {found.failed or figures}")
    return found


def _parts_of(group: str, plan: Plan) -> list[str]:
    return [part for part in plan.parts if (part if part in ("idle", "scale") else "work") == group]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _about(plan: Plan, rounds: list[Round]) -> dict[str, str]:
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    compiled = "compiled" if is_compiled() else "not compiled"
    python = f"{platform.python_version()} ({_call_ns():.0f} ns a call), gateway {compiled}"
    ours = [f"{name} {metadata.version(name)}" for name in ("uvloop", "aiohttp", "python-socketio", "aiomqtt")]
    theirs = [_node_version(), *(f"{name} {_module_version(name)}" for name in NODE_MODULES)]
    counts = {group: max((r.number for r in rounds if r.group == group), default=0) for group in plan.groups}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}",
        "broker": f"mosquitto {_mosquitto_version()}, from mosquitto.conf",
        "Python": f"{python}, {', '.join(ours)}",
        "Node": ", ".join(theirs) if "node" in plan.contenders else "not run",
        "rounds": ", ".join(f"{group} {count}" for group, count in counts.items()),
        "devices": f"{plan.devices:,}; idle {plan.idle_devices:,}; {plan.window} commands under way; payload 200 bytes",
    }


def _call_ns() -> float:
    """How long a call of a function takes: half as long again where Python was built without optimisations."""
    calls = 200_000
    return min(timeit.repeat("f()", "def f(): pass", number=calls, repeat=10)) / calls * 1e9


def _mosquitto_version() -> str:
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "mosquitto"
    usage = subprocess.run([binary, "-h"], capture_output=True, text=True, check=False).stdout
    return usage.partition("\n")[0].removeprefix("mosquitto version ")


def _node_version() -> str:
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()


def _module_version(name: str) -> str:
    package = contenders.PEERS / "node_modules" / name / "package.json"
    return str(msgspec.json.decode(package.read_bytes())["version"]) if package.exists() else "?"


def _save(run: Run, out: Path, *, to_readme: bool) -> None:
    (out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    picture: str | None = "report.png"
    try:
        plots.draw(run, out / "report.png")
    except plots.Unavailable as problem:
        _say(str(problem))
        picture = None
    text = report.markdown(run, picture)
    (out / "report.md").write_text(text, "utf-8")
    click.echo(text)
    _say(f"saved in {out}")
    if to_readme:
        publish.into_readme(run, contenders.HERE.parent.parent)


if __name__ == "__main__":
    main()
