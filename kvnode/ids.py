"""The numbers kvnode counts with, each its own type: an index is not a count, a term is not a revision.

All are plain ``int`` at run time; the names exist for the type checker and the reader.
"""

from typing import NewType

NodeId = NewType("NodeId", int)
"""Member id: 1, 2, 3 …, never reused within a cluster. 0 means "nobody"."""

Term = NewType("Term", int)
"""Raft term, the generation clock. 0 only before the first election."""

Index = NewType("Index", int)
"""Position in the replicated log, counted from 1. 0 is the empty sentinel with term 0."""

Revision = NewType("Revision", int)
"""The store's own counter: 1 when empty, +1 for each transaction that changed anything."""

WriteNumber = NewType("WriteNumber", int)
"""Number of a write handed to the log writer, +1 each, never reused within a process. 0 means "none"."""

RequestId = NewType("RequestId", int)
"""Names one waiting request inside the node it entered by. Never leaves a pair of peers."""

NOBODY = NodeId(0)
NO_WRITE = WriteNumber(0)
