"""The command line, called from a test."""

from click.testing import CliRunner, Result
from typer.main import get_command

from duolora.cli.app import app

WHOLE = get_command(app)
"""All commands; Typer's own runner makes them anew at every call."""


def run(*arguments: object, **given: object) -> Result:
    """What `duolora` with these arguments does; `given` is for click's runner."""
    return CliRunner().invoke(WHOLE, [str(a) for a in arguments], **given)
