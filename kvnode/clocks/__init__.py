"""Clocks: the protocol through which time enters, the hybrid logical clock. Only `system` reads the machine's."""
