"""Socket.IO devices on one side, MQTT 5 on the other: every device becomes an MQTT session of its own."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the modules that pyproject.toml names for it are compiled here (docs/adr/0005)."""
    session = find_spec("gateway.session")
    return session is not None and str(session.origin).endswith(tuple(EXTENSION_SUFFIXES))
