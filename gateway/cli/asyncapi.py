"""`gateway asyncapi`: prints the AsyncAPI document, or writes the JSON Schemas."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gateway.cli.options import Refused


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file, for its prefix and its own events; without one, the environment.",
)
@click.option(
    "--schemas",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a JSON Schema for each payload and ack into this folder instead.",
)
def asyncapi(path: Path | None, folder: Path | None) -> None:
    """Print the contract with services as an AsyncAPI 3.0 document.

    A running node has it at /asyncapi.yaml of its admin port. Exit status 0 or 2.

    \b
    gateway asyncapi > asyncapi.yaml
    gateway asyncapi --config gateway.toml --schemas schemas
    """
    from gateway import asyncapi as contract
    from gateway.config import catalog_of, load
    from gateway.settings import ConfigError

    try:
        config = load(path, os.environ, {})
        catalog = catalog_of(config.catalog)
    except ConfigError as error:
        raise Refused(str(error)) from None
    if folder is None:
        click.echo(contract.as_yaml(contract.document(config, catalog)), nl=False)
    else:
        _write(contract.schemas(catalog), folder)


def _write(schemas: Mapping[str, Any], folder: Path) -> None:
    import msgspec

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas.items():
            (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(schema)) + b"\n")
    except OSError as error:
        raise Refused(f"--schemas: {folder}: cannot be written: {error.strerror}") from None
