"""One verb, one file: what `duolora` does, for Python and for the command line."""
