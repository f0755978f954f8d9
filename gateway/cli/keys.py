"""Lines of SERIAL,KEY, which several commands read."""

import csv
from typing import TextIO

from gateway.cli.options import Refused


def read_keys(source: TextIO) -> dict[str, str]:
    """Key by serial, in the order of the file. Raises Refused with every line that is wrong."""
    from gateway.topics import is_serial

    keys: dict[str, str] = {}
    problems = []
    try:
        for number, row in enumerate(csv.reader(source), 1):
            match row:
                case [] | [""]:
                    continue
                case [serial, key] if is_serial(serial) and key and serial not in keys:
                    keys[serial] = key
                case [serial, _] if serial in keys:
                    problems.append(f"{source.name}:{number}: {serial} is there twice")
                case _:
                    problems.append(f"{source.name}:{number}: expected SERIAL,KEY")
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{source.name}: cannot be read: {error}") from None
    if problems:
        raise Refused("\n".join(problems))
    return keys
