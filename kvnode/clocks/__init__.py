"""Clocks: the protocol through which time enters, hybrid clock, version vectors. Only `system` reads the machine's."""
