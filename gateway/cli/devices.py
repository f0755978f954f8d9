"""`devices`: keeps the file of keys."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import click

from gateway.cli.keys import read_keys
from gateway.cli.options import FILE, Refused

KEYS = click.option("--file", "path", metavar="PATH", type=FILE, required=True, help="The file of devices.")
PEPPER = click.option(
    "--pepper-env",
    metavar="NAME",
    default="GATEWAY_PEPPER",
    show_default=True,
    help="The environment variable with the secret of the hashes.",
)


@click.group()
def devices() -> None:
    """Keep the file of devices that `serve --auth file:PATH` reads.

    A gateway that runs notices changes by itself. Devices that are removed, or get another key, are disconnected
    within seconds.
    """


@devices.command()
@click.argument("serial")
@KEYS
@PEPPER
def add(serial: str, path: Path, pepper_env: str) -> None:
    """Add a device to the file, or give it another key.

    The key is asked for, or read from stdin: never a flag, which every user of the machine could see. Only
    a hash of it is kept; the secret in the environment variable GATEWAY_PEPPER is part of the hash. The file
    is made if it is missing.

    \b
    gateway devices add --file devices.txt AC4178234411
    pass show plates/AC1 | gateway devices add --file devices.txt AC1
    """
    pepper = _pepper(pepper_env)
    _check(serial)
    try:
        terminal = sys.stdin.isatty()
        key = click.prompt("Key", hide_input=True) if terminal else sys.stdin.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Refused("the key is not UTF-8 text") from None
    if not key:
        raise Refused("the key is empty: type it when asked, or pipe it in as one line")
    _put(path, {serial: key}, pepper)
    click.echo(f"{path}: {serial} may connect")


@devices.command("import")
@click.argument("source", metavar="CSV", type=click.File("r", encoding="utf-8"))
@KEYS
@PEPPER
def import_(source: TextIO, path: Path, pepper_env: str) -> None:
    """Add many devices at once, or give them other keys.

    CSV has lines of SERIAL,KEY without a header; `-` is stdin. All of them are added, or none: every line
    that is wrong is told.

    \b
    gateway devices import --file devices.txt plates.csv
    """
    pepper = _pepper(pepper_env)
    keys = read_keys(source)
    _put(path, keys, pepper)
    click.echo(f"{path}: {len(keys)} devices may connect")


@devices.command()
@click.argument("serial")
@KEYS
@PEPPER
def rotate(serial: str, path: Path, pepper_env: str) -> None:
    """Give a device a new random key, and print it.

    It is not kept anywhere else: the file has only its hash. If the device is connected it is disconnected
    within seconds. Exit status 1 if it is not in the file.

    \b
    gateway devices rotate --file devices.txt AC4178234411
    """
    import secrets

    from gateway import keyfile

    pepper = _pepper(pepper_env)
    try:
        known = keyfile.read(path)
    except ValueError as error:
        raise Refused(str(error)) from None
    if serial not in known:
        click.echo(f"{path}: {serial} is not in the file: add it with `gateway devices add`", err=True)
        sys.exit(1)
    key = secrets.token_urlsafe(24)
    _put(path, {serial: key}, pepper)
    click.echo(key)


@devices.command()
@click.argument("serial")
@KEYS
def remove(serial: str, path: Path) -> None:
    """Remove a device from the file.

    If it is connected it is disconnected within seconds. Exit status 1 if it is not in the file.

    \b
    gateway devices remove --file devices.txt AC4178234411
    """
    from gateway import keyfile

    try:
        found = keyfile.remove(path.resolve(), serial)
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be written: {error}") from None
    click.echo(f"{path}: {serial} may {'no longer connect' if found else 'not connect: it is not in the file'}")
    sys.exit(0 if found else 1)


@devices.command("list")
@KEYS
def list_(path: Path) -> None:
    """Print the serial of each device in the file.

    \b
    gateway devices list --file devices.txt
    """
    from gateway import keyfile

    try:
        serials = keyfile.read(path)
    except ValueError as error:
        raise Refused(str(error)) from None
    for serial in serials:
        click.echo(serial)


def _pepper(name: str) -> bytes:
    pepper = os.environ.get(name, "")
    if not pepper:
        raise Refused(f"{name} is not set: export the secret that the gateway runs with")
    return pepper.encode()


def _check(serial: str) -> None:
    from gateway.topics import is_serial

    if not is_serial(serial):
        raise Refused("SERIAL: expected 1 to 64 of A-Z a-z 0-9 . _ -")


def _put(path: Path, keys: Mapping[str, str], pepper: bytes) -> None:
    """Write the hashes of these keys."""
    from gateway import keyfile
    from gateway.auth.file import hash_key

    try:
        keyfile.put(path.resolve(), {serial: hash_key(serial, key, pepper) for serial, key in keys.items()})
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be written: {error}") from None
