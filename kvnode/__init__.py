"""kvnode: a replicated key-value server for coordination."""
