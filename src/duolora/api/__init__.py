"""What users call from Python: one verb, one file."""
