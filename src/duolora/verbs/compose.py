"""Several LoRAs in one file: their weighted sum, exact, by concatenation (Sec. 3.5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from duolora.adapters.adapter import Adapter
from duolora.adapters.files import FORMATS, Format, check_writable, read_adapter, write_adapter
from duolora.adapters.proof import Proof
from duolora.adapters.reading import source_hash
from duolora.errors import InputError
from duolora.merging.export import dtype_of
from duolora.paper.lowrank import LowRank, concatenate
from duolora.provenance import versions


@dataclass(frozen=True)
class Composed:
    """The file, the proof of its strength, and what the composed files hold besides LoRAs."""

    path: Path
    proof: Proof
    left_out: tuple[str, ...] = ()
    """Parts that are not carried over, such as bundled embeddings."""


def compose(
    loras: Sequence[str | Path],
    out: str | Path,
    weights: Sequence[float] | None = None,
    format: str = "diffusers",
    dtype: str = "float16",
) -> Composed:
    """Write Σ αᵢ ΔWᵢ of the LoRA files to `out`; the rank of a module is the sum of its ranks.

    Args:
        loras: two or more LoRA files, such as merges of several contents with one style.
        out: the .safetensors file to write.
        weights: αᵢ of each file; by default 1/n, as the paper has it.
        format: diffusers, kohya or uniform.
        dtype: float16, bfloat16 or float32.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    paths, target = [Path(path).expanduser() for path in loras], Path(out).expanduser()
    chosen = _weights(paths, weights)
    kind = format_of(format)
    check_writable(target)
    adapters = [read_adapter(path) for path in paths]
    sources = [
        {"file": source_hash(path), "weight": weight, "prompt": adapter.recipe.get("prompt")}
        for path, weight, adapter in zip(paths, chosen, adapters, strict=True)
    ]
    recipe: dict[str, object] = {"made_by": "duolora compose", "sources": sources, "versions": versions()}
    left_out = left_out_of(adapters, recipe)
    proof = write_adapter(target, composed(adapters, chosen, recipe), dtype_of(dtype), kind)
    return Composed(target, proof, left_out)


def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        InputError: there is none.
    """
    kind = next((known for known in FORMATS if known == name), None)
    if kind is None:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    return kind


def left_out_of(adapters: Sequence[Adapter], recipe: dict[str, object]) -> tuple[str, ...]:
    """What the adapters hold besides LoRAs; the recipe says so, too."""
    found = tuple(dict.fromkeys(part for adapter in adapters for part in adapter.left_out))
    if found:
        recipe["left_out"] = list(found)
    return found


def composed(adapters: Sequence[Adapter], weights: Sequence[float], recipe: dict[str, object]) -> Adapter:
    """The weighted sum; a module that only some cover is the sum of those.

    Raises:
        InputError: two adapters have one module in different shapes.
    """
    found: dict[str, list[LowRank]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, lora in adapter.modules.items():
            first = found.setdefault(name, [])
            if first and (first[0].d_out, first[0].d_in, first[0].kernel) != (lora.d_out, lora.d_in, lora.kernel):
                shapes = f"{(first[0].d_out, first[0].d_in)} and {(lora.d_out, lora.d_in)}"
                raise InputError(f"{name}: expected one shape in all files, found {shapes}; they are for other bases")
            first.append(replace(lora, scale=weight * lora.scale))
    return Adapter({name: concatenate(loras) for name, loras in found.items()}, recipe)


def _weights(paths: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if len(paths) < 2:
        raise InputError(f"expected at least two LoRA files to compose, got {len(paths)}")
    chosen = [1 / len(paths)] * len(paths) if weights is None else list(weights)
    if len(chosen) != len(paths) or not all(math.isfinite(weight) for weight in chosen):
        raise InputError(f"weights: expected {len(paths)} finite numbers, one for each file, got {chosen}")
    return chosen
