"""Secrets that come in files: a container's or a credential of systemd. GATEWAY_X_FILE names the file of GATEWAY_X."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from gateway.config import Config
from gateway.settings import ConfigError, settings_of

SUFFIX: Final = "_FILE"


def read_secret_files(environ: MutableMapping[str, str]) -> None:
    """Replace each GATEWAY_…_FILE, unless it is itself a setting, by the variable that it stands for.

    The value is the file's content without the line end. Raises ConfigError with every problem.
    """
    own = {"GATEWAY_" + path.replace(".", "_").upper() for path in settings_of(Config)}
    problems = []
    for name in sorted(environ):
        if not (name.startswith("GATEWAY_") and name.endswith(SUFFIX)) or name in own:
            continue
        variable = name.removesuffix(SUFFIX)
        if variable in environ:
            problems.append(f"environment {name}: {variable} is there too, expected one of them")
            continue
        try:
            environ[variable] = Path(environ.pop(name)).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            problems.append(f"environment {name}: cannot be read: {error}")
    if problems:
        raise ConfigError(problems)
