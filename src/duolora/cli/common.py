"""How every command speaks: one clear line for an error, the verification in words, JSON where it is asked for."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from duolora.errors import DuoLoRAError, InputError, Notice
from duolora.model.defaults import BaseChoice, check_base

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")]
SeedOption = Annotated[int, typer.Option(help="The same seed and inputs give the same result.", min=0, max=2**32 - 1)]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def chosen(base: BaseChoice, quiet: bool) -> BaseChoice:
    """The base, to be loaded when it is needed, and then announced on stderr.

    Raises:
        InputError: there is no such base, or no such device.
    """
    check_device(base.device)
    check_base(base.base)
    return base if quiet else replace(base, announce=lambda line: typer.echo(line, err=True))


def check_device(device: str) -> None:
    """Refuse what is no device's name; whether there is such a device here, torch knows."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device):
        raise InputError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {device!r}")


@contextmanager
def doing(what: str, quiet: bool = False) -> Iterator[None]:
    """Say on a terminal what is begun, with the seconds that pass while libraries are imported."""
    from duolora.progress import underway

    with underway(printable(what), not quiet):
        yield


@contextmanager
def one_line() -> Iterator[None]:
    """Turn an error that a person can act on into one line on stderr and exit status 1."""
    try:
        with _told():
            yield
    except DuoLoRAError as error:
        typer.echo(f"duolora: {printable(str(error))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        typer.echo(f"duolora: {stop.args[0] if stop.args else 'stopped'}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        reason = printable(f"{where}{error.strerror or error}")
        typer.echo(f"duolora: {reason}; check the path, its permissions and the disk", err=True)
        raise typer.Exit(1) from None
    except RuntimeError as error:
        if "home directory" in str(error):  # of a path such as ~nobody/x
            typer.echo("duolora: a path begins with ~ and a name that nobody has here; write it out", err=True)
            raise typer.Exit(1) from None
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        typer.echo(
            "duolora: the device's memory is full; try --offload model, a smaller batch or --device cpu", err=True
        )
        raise typer.Exit(1) from None


@contextmanager
def _told() -> Iterator[None]:
    """Print each notice of the package once, as one line on stderr."""
    with warnings.catch_warnings():
        others = warnings.showwarning
        seen: set[str] = set()

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            """`warnings.showwarning` for notices of this package; all others go on as they would."""
            if not issubclass(category, Notice):
                others(message, category, *place, **more)
            elif str(message) not in seen:
                seen.add(str(message))
                typer.echo(f"duolora: {printable(str(message))}", err=True)

        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield


def printable(text: str) -> str:
    """The text without what a hostile file's keys could do to a terminal: other signs are shown by their codes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


_PARTLY = "for diffusers only: ComfyUI and Forge load about half of it, sd-scripts nothing; --format kohya is for all"
_ELSEWHERE = {
    ("diffusers", "unet"): _PARTLY,
    ("uniform", "unet"): _PARTLY,
    ("peft", "unet"): "for PEFT only, and the UNet only; --format kohya is for all programs",
    ("peft", "transformer"): "for PEFT only, and the transformer only; --format diffusers is for other programs",
}
"""Where the files of a format do not work; those of a transformer in diffusers' names do in ComfyUI."""


def verified(verification: Any) -> str:
    """What reading a written file back has shown, in words."""
    low, high = verification.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    size = f"{verification.modules} modules, {ranks}, {verification.size / 1000:.0f} kB"
    text = f"{size}; read back, ΔW is off by at most {verification.error:.0e} of its size"
    if verification.diffusers is not None:
        text += f", as diffusers loads it by {verification.diffusers:.0e}"
    text += f"; diffusers does not load it: {printable(verification.unloadable)}" if verification.unloadable else ""
    elsewhere = _ELSEWHERE.get((verification.format, verification.network), "")
    if verification.format == "kohya" and low != high:
        elsewhere = "diffusers 0.32 takes mixed ranks at a wrong strength: --format uniform is for it"
    return text + (f"\n{elsewhere}" if elsewhere else "")


def verification_facts(verification: Any) -> dict[str, object]:
    """The verification of a written file for JSON."""
    return {
        "bytes": verification.size,
        "error": verification.error,
        "error_in_diffusers": verification.diffusers,
        "format": verification.format,
    }


def tell_images(quiet: bool, *places: Any, fit: str | None = None) -> None:
    """Say on stderr how many images were used, and how; what was left out has been told when they were read."""
    from duolora.model.defaults import FITS
    from duolora.model.image_files import images_of

    for place in places:
        if place is not None and not quiet:
            how = f"; {FITS[fit]} (--fit)" if fit in FITS else ""
            typer.echo(printable(f"{images_of(place).used()}{how}"), err=True)


def report(as_json: bool, text: str, **facts: object) -> None:
    """Print the text, or the facts as one JSON object."""
    shown = (printable(line) for line in text.split("\n"))
    typer.echo(json.dumps(facts, default=str) if as_json else "\n".join(shown))
