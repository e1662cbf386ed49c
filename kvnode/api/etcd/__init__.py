"""The etcd v3 HTTP/JSON API: a second front end over the same `KV`, for software that was written for etcd."""
