"""The one place that holds versions: of kvnode, and of the etcd whose API its nodes serve."""

__version__ = "0.1.0"

ETCD_SERVER_VERSION = "3.5.21"
"""What clients of etcd are told; they take it for numbers. It stands for what the API knows, not for a release."""

ETCD_CLUSTER_VERSION = "3.5.0"
"""What every member can do."""
