"""The etcd v3 JSON API, seen from outside: what etcd answers, kvnode answers.

`connection` and `target` are the client, `words` the words of the API. Each test module takes one chapter of the API.
Nothing in here looks into a server: where etcd is on the PATH the same tests run against it, which proves the tests.
"""
