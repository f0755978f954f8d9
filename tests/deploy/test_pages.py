"""The pages of `deploy/`: what they link to is there."""

import re
from pathlib import Path

import pytest

from tests.e2e.proxies import DEPLOY


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(DEPLOY.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_index_names_everything_here() -> None:
    index = (DEPLOY / "README.md").read_text("utf-8")
    entries = [path.name for path in DEPLOY.iterdir() if path.name not in ("README.md", "__pycache__")]
    assert [name for name in entries if f"({name})" not in index and f"`deploy/{name}" not in index] == ["capacity.py"]
    assert "(capacity.py)" in (DEPLOY / "CAPACITY.md").read_text("utf-8")
