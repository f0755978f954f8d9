"""Prometheus metrics, derived in this one place. Labels are closed sets, never a peer's text.

instruments: the numbers; session_metrics: counted from facts and effects; edge_metrics: sockets, rooms, links and the
node. deploy/METRICS.md says what each means.
"""

import platform
from collections.abc import Iterable

from gateway import __version__, is_compiled
from gateway.catalog import EVENTS, Event
from gateway.edge_metrics import LinkMetrics, NodeMetrics, RoomMetrics, SocketMetrics
from gateway.instruments import Instruments
from gateway.session_metrics import OTHER, SessionMetrics


class Metrics:
    """The gateway's metrics.

    Args:
        catalog: the events that are labels; any other is `other`.
        node: the name of the node.
    """

    def __init__(self, catalog: Iterable[Event] = EVENTS.values(), node: str = "") -> None:
        self.instruments = make = Instruments()
        events = (*(event.name for event in catalog), OTHER)
        self.sessions = SessionMetrics(make, events)
        self.sockets = SocketMetrics(make)
        self.rooms = RoomMetrics(make, events)
        self.links = LinkMetrics(make)
        compiled = "yes" if is_compiled() else "no"
        build = {"version": __version__, "node": node, "python": platform.python_version(), "compiled": compiled}
        self.node = NodeMetrics(make, build)
