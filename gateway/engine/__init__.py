"""Engine.IO 3 and 4 on one URL: the transport under the Socket.IO server.

Pure: codec, effects, options, session, wheel. Edges: connection, polling, websocket, server.
"""
