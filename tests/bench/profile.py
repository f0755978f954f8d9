"""Where a gateway's time goes: samples of py-spy during one measurement, as text."""

import asyncio
import signal
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

START_S: Final = 1.0  # py-spy reads the symbols of the process first
PER_S: Final = 250
LINES: Final = 25
OURS: Final = "(gateway/"
WATCHDOG: Final = "Pulse._watch"  # a thread that waits; py-spy takes it for one that works


@asynccontextmanager
async def sampled(pid: int, report: Path) -> AsyncIterator[None]:
    """Sample a process while the context is open; the tables go to `report`."""
    samples = report.with_suffix(".folded")
    async with recorded(pid, samples):
        yield
    report.write_text(tables(samples.read_text().splitlines()))
    samples.unlink()


@asynccontextmanager
async def recorded(pid: int, samples: Path) -> AsyncIterator[None]:
    """Sample a process with py-spy while the context is open, native frames included, into a file of folded stacks."""
    options = ("--native", "--format", "raw", "--rate", str(PER_S), "--duration", "600", "--output", str(samples))
    process = await asyncio.create_subprocess_exec(
        "py-spy", "record", "--pid", str(pid), *options, stdout=DEVNULL, stderr=DEVNULL
    )
    await asyncio.sleep(START_S)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def share(folded: Iterable[str], is_meant: Callable[[str], object]) -> tuple[float, int]:
    """Which part of the samples has a stack that is meant, and how many samples there are; `folded`: see `tables`."""
    total = meant = 0
    for line in folded:
        stack, _, count = line.rpartition(" ")
        if WATCHDOG not in stack:
            total += int(count)
            meant += int(count) * bool(is_meant(stack))
    return meant / (total or 1), total


def tables(folded: Iterable[str]) -> str:
    """The functions by their own time, and those of the gateway by all time spent in them, in percent of the samples.

    Args:
        folded: a line for each stack, `outer;…;inner count`, as py-spy writes it.
    """
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for line in folded:
        stack, _, count = line.rpartition(" ")
        if WATCHDOG in stack:
            continue
        functions = [_without_line(frame) for frame in stack.split(";")]
        own[functions[-1]] += int(count)
        for function in set(functions):
            if OURS in function:
                inclusive[function] += int(count)
    total = own.total() or 1
    text = [f"{total} samples"]
    for title, counts in (("own time", own), ("with what they call", inclusive)):
        text += ["", title]
        text += [f"{100 * count / total:5.1f} %  {function}" for function, count in counts.most_common(LINES)]
    return "\n".join(text) + "\n"


def _without_line(frame: str) -> str:
    """`function (file:line)` without the line, so that the samples of one function add up."""
    name, _, place = frame.rpartition(" (")
    return f"{name} ({place.partition(':')[0].rstrip(')')})" if name else frame
