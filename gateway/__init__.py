"""Socket.IO devices on one side, MQTT 5 on the other: every device becomes an MQTT session of its own."""

__version__ = "0.1.0"
