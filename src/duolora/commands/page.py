"""The command that opens the page: ui."""

from pathlib import Path
from typing import Annotated

import typer

from duolora.commands.speech import one_line


def ui(
    folder: Annotated[Path, typer.Option("--out", help="Folder for everything that is made.")] = Path("duolora-ui"),
    base: Annotated[str, typer.Option(help="The base that is offered first.")] = "atelier",
    port: Annotated[int | None, typer.Option(help="Port  [the first free one from 7860].")] = None,
    host: Annotated[str, typer.Option(help="Where it listens; by default this machine only.")] = "127.0.0.1",
) -> None:
    """Open a page to work with, on this machine only.

    Train, merge, weigh, compare and download.
    """
    with one_line():
        from duolora.ui.page import serve

        serve(folder, base, host, port)
