"""The file of keys: what is read, and that writers never lose a line or leave a part of one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway import keyfile

HASH = "0123456789abcdef" * 4


def keys(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    return path


def test_reads_serials_in_order(tmp_path: Path) -> None:
    path = keys(tmp_path, f"# 班牌\n\ns2:{HASH}\n  s1:{HASH}  # a comment\n")
    assert list(keyfile.read(path).items()) == [("s2", HASH), ("s1", HASH)]


def test_changing_one_line_keeps_the_others(tmp_path: Path) -> None:
    path = keys(tmp_path, f"# hall\nAC1:{HASH}\nAC11:{HASH}")
    keyfile.put(path, {"AC1": HASH[::-1]})
    assert path.read_text() == f"# hall\nAC11:{HASH}\nAC1:{HASH[::-1]}\n"
    assert keyfile.remove(path, "AC11")
    assert path.read_text() == f"# hall\nAC1:{HASH[::-1]}\n"
    assert not keyfile.remove(path, "AC11")


def test_devices_added_at_once_are_all_kept(tmp_path: Path) -> None:
    """Whoever reads the file, changes it and writes it back must have it alone meanwhile."""
    path = tmp_path / "keys"
    serials = [f"AC{number}" for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda serial: keyfile.put(path, {serial: HASH}), serials))
    assert sorted(keyfile.read(path)) == sorted(serials)


@pytest.mark.parametrize(
    "line",
    [
        "s1",
        "s1:",
        "s1:abc",
        ":" + "0" * 64,
        "a/b:" + "0" * 64,
        "s1:" + "0" * 65,
        "s1:" + "G" * 64,
        "s1:" + "é" * 64,
        "s1:" + "A" * 64,
        "s1 :" + "0" * 64,
    ],
)
def test_names_the_line_that_is_wrong(tmp_path: Path, line: str) -> None:
    path = keys(tmp_path, f"# keys\ns0:{'0' * 64}\n{line}\n")
    with pytest.raises(ValueError, match=r"keys:3: expected serial:hash, as `gateway devices add` writes it$"):
        keyfile.read(path)


def test_says_that_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# caf\xe9\n")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "latin"):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            keyfile.read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
