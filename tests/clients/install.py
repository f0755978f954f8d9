"""Installs the clients: those from npm beside package.json, with the AsyncAPI parser; an old one from PyPI by itself.

What cannot be installed skips the test with the reason, or fails it with GATEWAY_TEST_REQUIRE_ALL=1.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
OLD_PYTHON_CLIENT = HERE / "node_modules" / ".old-python-client"
INSTALL_TIMEOUT_S = 600
CLIENTS = ("sio17", "sio25", "sio31", "sio48", "weapp", "@asyncapi/parser")


def missing(what: str) -> None:
    """Skip the test for want of something, or fail it where everything must be there."""
    if os.environ.get("GATEWAY_TEST_REQUIRE_ALL") == "1":
        pytest.fail(what)
    pytest.skip(what)


def program(name: str) -> str:
    """The path of a program: of the system, or one that a package brought beside Python."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:{Path(sys.executable).parent}")
    if path is None:
        missing(f"{name} is not installed")
    return str(path)


def installed(client: str) -> Path:
    """The folder of a client from npm."""
    with (HERE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((MODULES / name).exists() for name in CLIENTS):
            _run(program("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent")
    return MODULES / client


def old_python_client() -> str:
    """A Python that has python-socketio 4.6.1, the last for Engine.IO 3, which cannot live beside the present one."""
    python = OLD_PYTHON_CLIENT / "bin" / "python"
    with (HERE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not python.exists():
            MODULES.mkdir(exist_ok=True)
            _run(sys.executable, "-m", "venv", str(OLD_PYTHON_CLIENT))
            packages = ("python-socketio==4.6.1", "python-engineio==3.14.2", "requests", "websocket-client<0.59")
            _run(str(python), "-m", "pip", "install", "-q", *packages)
    return str(python)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, cwd=HERE, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
        missing(f"{' '.join(command[:3])}: {problem}")
