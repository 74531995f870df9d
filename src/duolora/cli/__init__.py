"""The command line: verbs for people, and how all of them speak."""
