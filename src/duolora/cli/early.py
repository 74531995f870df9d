"""What arguments and file headers say already: it is said before anything heavy is imported."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server
from typing import Any, get_args

from duolora.errors import InputError, reason
from duolora.lora.families import common, fitting, narrowed
from duolora.lora.names import shapes_of
from duolora.lora.read.header import making, read_header, weights_of
from duolora.lora.write.atomic import check_export
from duolora.merging.options import no_base, no_prompt
from duolora.model.architectures import PROJECTION, recognised
from duolora.model.defaults import AUTO, check_base
from duolora.options import FileDtype, word


def check_output(
    out: Path, format: str, dtype: str, formats: Any, inputs: Iterable[Path | None], overwrite: bool
) -> None:
    """Refuse a format or a dtype that there is not, and a place where no file can or may be written."""
    word("dtype", dtype, get_args(FileDtype))
    check_export(out, word("format", format, get_args(formats)), inputs, overwrite)


def check_inputs(loras: Iterable[Path], *others: Path | None, base: str | None = None) -> None:
    """Refuse files that are missing or cannot be LoRAs by their headers, images that are missing, and such a base."""
    for path in loras:
        read_header(weights_of(path))
    for place in others:
        if place is not None:
            check_there("an image or a folder of images", place)
            from duolora.model.image_files import images_of

            images_of(place)
    if base is not None:
        check_base(base)


def check_known(loras: Mapping[str, Path], prompts: Mapping[str, str | None], method: str, base: str) -> None:
    """Refuse two LoRAs for a method that trains masks where neither anybody nor their headers say on what.

    Args:
        loras: the content and the style.
        prompts: those that were given for them.
        method: one that trains masks.
        base: the one that was given, or `auto`.

    Raises:
        InputError: the prompt of one is not known, or the base, if the headers tell that they are for another UNet than
            Atelier's; all that is missing at once.
        BaseMismatch: they are for different bases.
    """
    headers = {kind: read_header(weights_of(path)) for kind, path in loras.items()}
    said = {kind: prompts[kind] or making(headers[kind][1], str(path)).get("prompt") for kind, path in loras.items()}
    missing = [kind for kind, prompt in said.items() if not (isinstance(prompt, str) and prompt.strip())]
    refused = [no_prompt(missing)] if missing else []
    with suppress(ValueError):  # names of transformers, about which diffusers' converters have to be asked
        sides = {loras[kind]: (shapes_of(entries), metadata) for kind, (entries, metadata) in headers.items()}
        fits = common((path, narrowed(fitting(shapes), metadata)) for path, (shapes, metadata) in sides.items())
        shapes = {n: shape for found, _ in sides.values() for n, shape in found.items() if PROJECTION.fullmatch(n)}
        found = recognised(shapes).name if fits[0] == "SDXL" else fits[0]
        if base == AUTO and found != "atelier":
            refused.append(no_base(method, found))
    if refused:
        raise InputError("; ".join(refused))


def check_there(what: str, *places: Path) -> None:
    """Refuse files and folders that are missing; `what` is what should be there."""
    for place in places:
        if not os.path.exists(place.expanduser()):
            raise InputError(f"{place}: no such file or folder; expected {what}")


def check_place(host: str, port: int | None) -> None:
    """Refuse a host or a port on which no page can be served."""
    try:
        create_server((host, port or 0), family=AF_INET6 if ":" in host else AF_INET).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = reason(error).partition(" (while")[0]
        raise InputError(f"{host}{f':{port}' if port else ''}: no page can be served there ({why}); give another "
                         "--port or --host") from None  # fmt: skip


def is_local(host: str) -> bool:
    """Whether only this machine reaches what is served on a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
