"""Doctor: what is wrong with a data directory or a cluster, and what to do about it.

Gathering and judging are apart: `directory`, `reader` and `cluster` collect facts, `directory_rules` and
`cluster_rules` are plain functions from facts to findings. Nothing here changes anything; the one file ever written
measures a disk.
"""
