"""The process of a worker. Its supervisor starts it, with the settings on its stdin; nobody else does."""

import pickle
import sys

import click

from gateway import app
from gateway.cli.serve import refusals


@click.command()
@click.argument("node")
def main(node: str) -> None:
    """Serve as told on stdin; NODE is for those who look at the list of processes. Exit status as of `serve`."""
    config, worker = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the supervisor, by a pipe
    with refusals():
        app.run(config, worker)


if __name__ == "__main__":
    main()
