"""The simulator: fakes behind the ports, decided by a seed or by trying every choice. May import rows 0 to 3."""
