"""Tier 2: the real node runtime, log, codec and store, on a virtual-time event loop."""
