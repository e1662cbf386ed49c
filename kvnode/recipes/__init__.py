"""Recipes: coordination built from the verbs of `KV`; they run over a node in this process or a simulated one alike.

May import the vocabulary (row 0) only.
"""
