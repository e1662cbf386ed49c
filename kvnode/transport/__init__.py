"""Peer traffic: one persistent connection per pair and lane, proven before anything is believed.

Imports rows 0 and 1. Who is who is decided by `kvnode.node.roster`, which reaches this package by shape.
"""
