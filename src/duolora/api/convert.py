"""A LoRA file in another program's format, at another strength or size; or a merge rebuilt from its masks."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.compress import Lost, lost, pruned, squeezed
from duolora.lora.on_demand import in_float32, mapped
from duolora.lora.parts import reweighted
from duolora.lora.read.file import read_adapter
from duolora.lora.verify import Verification
from duolora.merging.export import checked_output, export, untold
from duolora.merging.mask_file import is_mask_file, read_masks, rebuilt
from duolora.options import DEFAULT_FORMAT, Export, Written


class Changes(TypedDict, total=False):
    """What `convert` changes besides the format; it says what each is."""

    content: str | Path | None
    style: str | Path | None
    content_weight: float
    style_weight: float
    threshold: float | None
    energy: float | None
    rank: int | None


@dataclass(frozen=True)
class Converted:
    """The files, how their strength was verified, and what was lost by making them smaller."""

    paths: tuple[Path, ...]
    verification: Verification
    lost: Lost | None = None
    left_out: tuple[str, ...] = ()


def convert(
    file: str | Path,
    out: str | Path,
    format: str = DEFAULT_FORMAT,
    dtype: str = "float16",
    overwrite: bool = True,
    **changes: Unpack[Changes],
) -> Converted:
    """Write the LoRA in `file` to `out` in another format.

    Args:
        file: a LoRA in any dialect, or the masks of a merge.
        out: the .safetensors file to write, for peft a folder; the splits write two, with `.content` and `.style` in
            their names.
        format: kohya, diffusers, uniform, split, split-diffusers or peft (a folder).
        dtype: float16, bfloat16 or float32.
        content: for masks, the content LoRA that was merged.
        style: for masks, the style LoRA.
        content_weight: of a merge, what multiplies its content part.
        style_weight: of a merge, what multiplies its style part.
        threshold: leaves out directions with at most this share of the strength of their module's strongest.
        energy: keeps the singular directions with this share of each module's ‖ΔW‖².
        rank: keeps at most so many singular directions.
        overwrite: whether a file that is there already is replaced; an input never is.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    path, written = Path(file).expanduser(), Written(format=format, dtype=dtype, overwrite=overwrite)
    weights = changes.get("content_weight", 1.0), changes.get("style_weight", 1.0)
    sources = changes.get("content"), changes.get("style")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"weights: expected finite numbers, got {weights[0]} and {weights[1]}")
    if format == "masks":
        raise InputError(
            f"{path}: a file holds no masks any more once it is folded; use `duolora merge --format masks`"
        )
    to = checked_output(out, written, Export, (path, *sources))
    adapter = _read(path, sources, weights)
    threshold, energy, rank = (changes.get("threshold"), changes.get("energy"), changes.get("rank"))
    small = adapter if threshold is None else pruned(adapter, threshold)
    if energy is not None or rank is not None:
        small = squeezed(small, rank, energy)
    done = export(to.path, small, to.format, to.dtype, file=path)
    losses = None if small is adapter else lost(adapter, small)
    return Converted(done.paths, done.verification, losses, (*adapter.left_out, *untold(adapter, to.format)))


def _read(path: Path, sources: tuple[str | Path | None, ...], weights: tuple[float, float]) -> Adapter:
    content, style = sources
    if is_mask_file(path):
        if content is None or style is None:
            raise InputError(f"{path}: holds the masks of a merge only; give its two LoRAs with --content and --style")
        return rebuilt(read_masks(path), Path(content).expanduser(), Path(style).expanduser(), *weights)
    if content is not None or style is not None:
        raise InputError(f"{path}: expected masks, since --content or --style is given, found a LoRA; leave them away")
    adapter = read_adapter(path, as_stored=True)
    adapter = replace(adapter, modules=mapped(adapter.modules, in_float32))
    return adapter if weights == (1.0, 1.0) else reweighted(adapter, *weights, path)
