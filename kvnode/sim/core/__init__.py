"""Tier 1: Raft cores on a bare event heap. Everything around the core is a few lines; nothing is a coroutine."""
