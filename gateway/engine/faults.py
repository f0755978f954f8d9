"""What aiohttp logs about peers.

It writes an ERROR with a traceback for every request that is not HTTP and for every body that breaks off, so
that any stranger fills the log. Those are the peer's faults; they are answered with 400 and nothing else.
"""

import logging

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError


class PeerFaults(logging.Filter):
    """Drops records about malformed HTTP: `logging.getLogger("aiohttp.server").addFilter(PeerFaults())`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is about something else."""
        fault = record.exc_info[1] if record.exc_info else None
        return not isinstance(fault, HttpProcessingError | RequestPayloadError)
