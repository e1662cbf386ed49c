"""The consensus core: a pure Raft. Inputs and the time go in, an `Output` comes out; no I/O, no clock, no tasks.

Imports row 0 only. One module per pattern, with the field's name; `core.py` dispatches and decides nothing.
"""
