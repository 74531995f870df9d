"""`python -m duolora`, the same as `duolora`."""

from duolora.cli import main

if __name__ == "__main__":
    main()
