"""What strangers sent, on a terminal: it is shown there, and does not steer it."""

import re


def printable(text: str) -> str:
    r"""Return text with what no terminal shows, or what moves it, as `\uXXXX`; JSON stays the same JSON."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return re.sub("....", r"\\u\g<0>", char.encode("utf-16-be", "surrogatepass").hex())
