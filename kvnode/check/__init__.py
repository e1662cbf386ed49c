"""Checkers: what clients and observers saw, judged. Pure; may import row 0 only."""
