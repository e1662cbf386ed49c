"""The plain, curl-friendly calls: one module a noun. A handler takes a `Call` and returns an `Answer`."""
