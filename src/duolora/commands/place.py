"""Options of every command that runs a base: which one, where, in which dtype, and what leaves the device meanwhile."""

from typing import Annotated, Any

import typer

BaseOption = Annotated[str, typer.Option(help="`atelier`, a diffusers folder, a .safetensors checkpoint, or a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BaseDtypeOption = Annotated[
    str, typer.Option("--dtype", "--base-dtype", help="What the base computes in: auto, float32, bfloat16 or float16.")
]
MergeBaseDtypeOption = Annotated[
    str, typer.Option("--base-dtype", help="What the base computes in: auto, float32, bfloat16 or float16.")
]
OffloadOption = Annotated[
    str, typer.Option(help="auto, none, model (networks take turns on the device) or sequential (layers do: slow).")
]


def chosen(base: str, device: str, dtype: str, offload: str, quiet: bool) -> Any:
    """The base, to be loaded when it is needed, and then announced on stderr."""
    from duolora.networks.bases import BaseChoice

    return BaseChoice(base, device, dtype, offload, None if quiet else lambda line: typer.echo(line, err=True))
