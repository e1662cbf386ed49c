"""The node runtime: one queue of causes, one driver, one output executed in one order. Decides nothing itself."""
