"""Measurements of a large store: what a million keys cost, and what ten million cost a put.

A part is a module that takes a cluster in the state the parts before it left, and adds figures; `run` names
their order.
"""
