"""What an operator may set about Engine.IO."""

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and habits of one `EngineServer`; the defaults are those of the reference server."""

    ping_interval_s: float = 25.0
    ping_timeout_s: float = 20.0
    upgrade_timeout_s: float = 10.0
    """How long a WebSocket may probe before it has to take over."""
    admission_timeout_s: float = 45.0
    """How long a session may live before the application admits it."""
    request_timeout_s: float = 20.0
    """For the body of a POST of a session that is not admitted yet."""
    messages_per_s: float = 500.0
    """Of one peer; who sends more, PACE_BURST_S of them at once aside, is read more slowly."""
    bytes_per_s: float = 1_000_000.0
    """The same for the size of its messages."""
    max_payload_bytes: int = 1_000_000
    """Of a POST's body and of a WebSocket message; announced as maxPayload. Old servers took 100 MB."""
    max_buffer_bytes: int = 1_048_576
    """What may wait for one device: at the next write over it, the device is closed as slow."""
    binary_payload_over_bytes: int = 32_768
    """Longer polls go to Engine.IO 3 clients in binary framing: 1.x browsers die on long text bodies."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may connect, `*` for every one. Native devices send no Origin and always may."""
    missing_eio_is_3: bool = False
    """Take a handshake without `EIO` for Engine.IO 3 (Swift clients up to 15.2)."""
    cookie: str | None = None
    """Name of the session cookie for sticky load balancers, such as `io`; None sets no cookie."""
    compress_polls_over_bytes: int | None = 1024
    """Longer polls are gzipped when the client accepts it; None never does."""
    deflate_websockets_over_bytes: int | None = None
    """Negotiates permessage-deflate and deflates longer messages; None does not negotiate it. A socket that uses
    it takes 52 KB instead of 16 KB (measured), for the window that the peer's messages refer to."""
