"""The command line: verbs for people, and how all of them speak."""

import atexit
import gc
import os
import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line."""
    atexit.register(gc.freeze)  # the last collection would go through all of torch and diffusers, for seconds
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # they warn as they are imported, before anybody can ask them not to
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a sign shows another, and nothing fails for it
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    from duolora.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        print("duolora: stopped", file=sys.stderr)
        sys.exit(130)
