"""Front doors: HTTP in, `kvnode.kv.requests` to the node, HTTP out. Sees the node only as `KV` and `Admin`."""
