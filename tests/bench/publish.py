"""Puts a run into the README: the table between two comments, and the picture into docs/."""

from pathlib import Path
from typing import Final

from tests.bench import plots, report
from tests.bench.results import Run

BEGIN: Final = "<!-- bench -->\n"
END: Final = "<!-- /bench -->\n"
PICTURE: Final = "docs/bench.png"


def into_readme(run: Run, root: Path) -> None:
    """Replace what stands between the comments of README.md. Raises ValueError if they are not there."""
    readme = root / "README.md"
    before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has no place for the numbers")
    plots.draw(run, root / PICTURE)
    readme.write_text(before + begin + section(run) + end + after, "utf-8")


def section(run: Run) -> str:
    """What the README says of a run."""
    where = "; ".join(
        [run.about["machine"], run.about["broker"], *(f"{of} {run.about[of]}" for of in ("Python", "Node"))]
    )
    what = f"{where}. {run.about['date']}; devices {run.about['devices']}; rounds: {run.about['rounds']}."
    doubts = "".join(f"\n> {doubt}\n" for doubt in [*run.notes, *report.doubts(run)])
    return f"{what}\n{doubts}\n{report.comparison(run)}\n![the same figures as bars and lines]({PICTURE})\n"
