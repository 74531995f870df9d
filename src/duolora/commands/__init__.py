"""The commands that are not in `cli` itself, by what they are about, and how all of them speak."""
