"""Data sets of contents and styles, and which pairs, prompts and seeds a table is made of."""
