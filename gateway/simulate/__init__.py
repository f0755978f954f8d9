"""Devices to try, load and break a gateway with: thousands in one process, of both client generations.

Pure: packets, wire, profiles, tally. Edges: connection, device, fleet.
"""
