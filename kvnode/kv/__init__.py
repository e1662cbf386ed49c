"""The vocabulary of the store: requests, replies, key ranges and the KV interface. Pure; imports row 0 only."""
