"""A client of MQTT 5 that outlives its connections.

values: what crosses between a link and its owner; wire: codec; flow: the two QoS 1 flows; session: the client session
(all pure); link: its asyncio transport.
"""
