"""Measurements of a running cluster, side by side with etcd where it is installed. May import rows 0 to 3."""
