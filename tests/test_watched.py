"""Files that are read again: when, what happens to what cannot be used, and who is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.watched import Files, Watched

Changes = list[tuple[str, str]]


def read(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError as problem:
        raise ValueError(f"{path}: {problem.strerror}") from None
    if "bad" in text:
        raise ValueError(f"{path}: bad")
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("one")
    return tmp_path / "file"


@pytest.fixture
def changes() -> Changes:
    return []


def watch(path: Path, changes: Changes, reader: Callable[[Path], str] = read) -> Watched[str]:
    return Watched.load(path, reader, lambda old, new: changes.append((old, new)))


def test_what_cannot_be_read_at_first_is_an_error(tmp_path: Path, changes: Changes) -> None:
    with pytest.raises(ValueError, match="No such file"):
        watch(tmp_path / "missing", changes)


async def test_a_file_is_read_when_it_has_changed_or_when_asked(path: Path, changes: Changes) -> None:
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return read(path)

    file = watch(path, changes, counted)
    for _ in range(3):
        await file.refresh()
    assert len(reads) == 1
    path.write_text("second")
    await asyncio.gather(*(file.refresh() for _ in range(10)))
    assert (len(reads), file.content) == (2, "second")
    await file.refresh(anyway=True)
    assert len(reads) == 3


@pytest.mark.parametrize("broken", ["bad", None])
async def test_what_cannot_be_used_is_warned_of_once(
    path: Path, changes: Changes, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = watch(path, changes)
    path.write_text(broken) if broken else path.unlink()
    for _ in range(3):
        await file.look()
    assert (file.content, changes) == ("one", [])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await file.look(anyway=True)
    assert len(caplog.records) == 2, "whoever asks is answered again"
    path.write_text("good again")
    await file.refresh()
    assert file.content == "good again"


async def test_a_change_is_told_when_the_file_is_still(path: Path, changes: Changes) -> None:
    """An editor may empty a file before it writes it: that is no reason to disconnect everybody."""
    file = watch(path, changes)
    path.write_text("")
    await file.look()
    assert (file.content, changes) == ("", [])
    path.write_text("one more")
    await file.look()
    assert changes == []
    await file.look()
    assert changes == [("one", "one more")]
    await file.look()
    assert len(changes) == 1


async def test_whoever_asks_is_told_at_once(path: Path, changes: Changes) -> None:
    file = watch(path, changes)
    path.write_text("two!")
    await file.look(anyway=True)
    assert changes == [("one", "two!")]


@asynccontextmanager
async def running(files: Files) -> AsyncIterator[None]:
    task = asyncio.create_task(files.run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_files_are_looked_at_whatever_happens_to_one_and_read_again_on_demand(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watched.LOOK_EVERY_S", 0.001)
    told, files = asyncio.Event(), Files()
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return read(path)

    def failing(_old: str, _new: str) -> None:
        raise RuntimeError("whoever is told fails")

    (tmp_path / "other").write_text("x")
    files.watch(Watched.load(tmp_path / "other", read, failing))
    files.watch(Watched.load(path, counted, lambda *_: told.set()))
    async with running(files), asyncio.timeout(10):
        (tmp_path / "other").write_text("y!")
        path.write_text("two!")
        await told.wait()
        before = len(reads)
        monkeypatch.setattr("gateway.watched.LOOK_EVERY_S", 3600)
        files.reload()
        while len(reads) == before:  # noqa: ASYNC110 - a read tells nobody
            await asyncio.sleep(0.001)
