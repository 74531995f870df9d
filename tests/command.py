"""The command line, called from a test."""

from click.testing import Result
from typer.testing import CliRunner

from duolora.cli.app import app


def run(*arguments: object) -> Result:
    """What `duolora` with these arguments does."""
    return CliRunner().invoke(app, [str(a) for a in arguments])
