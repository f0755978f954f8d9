"""deploy/requirements.lock: every dependency, in a version that pyproject.toml allows, with its hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)
LOCK = (ROOT / "deploy" / "requirements.lock").read_text("utf-8")
VERSIONS = {canonicalize_name(name): version for name, version, _ in PINNED.findall(LOCK)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_each_dependency_is_pinned_to_what_the_project_allows(dependency: str) -> None:
    wanted = Requirement(dependency)
    assert wanted.specifier.contains(VERSIONS[canonicalize_name(wanted.name)])


def test_nothing_is_without_a_hash_or_from_elsewhere() -> None:
    assert PINNED.sub("", LOCK).strip() == ""
