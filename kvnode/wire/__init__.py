"""What travels between nodes, byte for byte: frames, handshake messages, peer messages, log payloads. Pure.

Imports row 0 and, as the one exception in its row, the message types of `raft`.
"""
