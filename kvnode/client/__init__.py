"""Clients of a running cluster: `client.Client` for asyncio programs, `http` for one-shot calls. Neighbours of the
node: nothing here imports the server's packages."""
