"""The file of the devices' keys: one `serial:hash` a line, `#` begins a comment. Replaced whole, never in part."""

import fcntl
import os
import re
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway.topics import is_serial

_HASH = re.compile("[0-9a-f]{64}")  # SHA-256, as `auth.hash_key` writes it


def read(path: Path) -> dict[str, str]:
    """The hash of each serial, in the order of the file.

    Raises:
        ValueError: the file cannot be read, or a line is wrong; one line that says which.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as problem:
        raise ValueError(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: cannot be read: {problem}") from None
    hashes = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        serial, _, digest = entry.partition(":")
        if not (is_serial(serial) and _HASH.fullmatch(digest)):
            raise ValueError(f"{path}:{number}: expected serial:hash, as `gateway devices add` writes it")
        hashes[serial] = digest
    return hashes


def put(path: Path, hashes: Mapping[str, str]) -> None:
    """Replace the lines of these serials, or append them; makes a missing file. Raises OSError, ValueError."""
    with _alone(path):
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        added = [f"{serial}:{hashed}" for serial, hashed in hashes.items()]
        _replace(path, [*_without(lines, hashes), *added])


def remove(path: Path, serial: str) -> bool:
    """Drop the line of a serial; return whether there was one. Raises OSError, ValueError."""
    with _alone(path):
        lines = path.read_text("utf-8").splitlines()
        kept = _without(lines, {serial})
        if len(kept) < len(lines):
            _replace(path, kept)
    return len(kept) < len(lines)


def _without(lines: list[str], serials: Container[str]) -> list[str]:
    return [line for line in lines if line.partition(":")[0].strip() not in serials]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """A lock on the directory: two that change the file at once would lose a line."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _replace(path: Path, lines: list[str]) -> None:
    """Write the file anew under mode 0600, for its old owner, and only then give it its name."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as new:
        try:
            new.writelines(f"{line}\n" for line in lines)
            new.flush()
            if path.exists() and os.geteuid() == 0:
                os.fchown(new.fileno(), path.stat().st_uid, path.stat().st_gid)
            os.fsync(new.fileno())
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise
