"""Benchmarks: which pairs (pairs), which rows a table has (tables), how cells are run (run) and shown (render)."""
