"""The Dockerfile of `deploy/`: what hadolint says of it, and that what it copies makes a gateway."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gateway.config import Config, resolve
from tests.clients.install import program
from tests.e2e.proxies import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def hadolint(text: str) -> "subprocess.CompletedProcess[str]":
    command = (program("hadolint"), "--no-color", "-")
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_hadolint_finds_nothing() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")
    assert "DL3002" in hadolint(f"{DOCKERFILE}\nUSER root\n").stdout


def last(instruction: str) -> str:
    return str(re.findall(rf"^{instruction} (.*)$", DOCKERFILE, re.MULTILINE)[-1])


def test_it_runs_as_nobody_from_a_base_with_a_version() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))
    assert re.search(r"^ARG PYTHON=python:3\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert "HEALTHCHECK" in DOCKERFILE


def test_what_compiles_it_is_the_python_that_runs_it() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert arguments["COMPILER"] == arguments["PYTHON"].replace("-slim", "")  # which has no compiler


def test_the_settings_in_it_are_settings() -> None:
    """The health check asks where they say."""
    environ = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
    config = resolve({}, environ, {})
    assert config != Config(node=config.node)
    assert f"http://127.0.0.1:{config.admin.listen.port}/healthz" in DOCKERFILE


def test_what_it_copies_makes_the_whole_gateway(tmp_path: Path) -> None:
    """The build sees what is copied and nothing else; the wheel of that has every module and the broker's settings."""
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)).split()
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert [line for line in ignore if not line.startswith(("#", "!"))] == ["*", "**/__pycache__", "**/*.so"]
    assert [line.removeprefix("!") for line in ignore if line.startswith("!")] == copied
    for name in copied:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copyfile(source, target)
        else:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    build = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "wheel", ".")
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gateway/")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert inside == modules | {"gateway/py.typed", "gateway/mosquitto.conf"}
