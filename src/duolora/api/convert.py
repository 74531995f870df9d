"""A LoRA file in another program's format, at another strength or size; or a merge rebuilt from its masks."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.compress import Lost, lost, pruned, squeezed
from duolora.lora.on_demand import in_float32, mapped
from duolora.lora.parts import weighed
from duolora.lora.read.file import read_adapter
from duolora.lora.verify import Proof
from duolora.lora.write.atomic import check_export
from duolora.merging.export import dtype_of, export
from duolora.merging.mask_file import is_mask_file, read_masks, rebuilt
from duolora.options import DEFAULT_FORMAT, Export, word


@dataclass(frozen=True)
class Converted:
    """The files, how their strength was verified, and what was lost by making them smaller."""

    paths: tuple[Path, ...]
    proof: Proof
    lost: Lost | None = None
    left_out: tuple[str, ...] = ()


def convert(
    file: str | Path,
    out: str | Path,
    format: str = DEFAULT_FORMAT,
    dtype: str = "float16",
    content: str | Path | None = None,
    style: str | Path | None = None,
    content_weight: float = 1.0,
    style_weight: float = 1.0,
    threshold: float | None = None,
    energy: float | None = None,
    rank: int | None = None,
    overwrite: bool = True,
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
    path, target, kind = Path(file).expanduser(), Path(out).expanduser(), word("format", format, get_args(Export))
    if not (math.isfinite(content_weight) and math.isfinite(style_weight)):
        raise InputError(f"weights: expected finite numbers, got {content_weight} and {style_weight}")
    if kind == "masks":
        raise InputError(
            f"{path}: a file holds no masks any more once it is folded; use `duolora merge --format masks`"
        )
    check_export(target, kind, (path, content, style), overwrite)
    adapter = _read(path, content, style, content_weight, style_weight)
    small = adapter if threshold is None else pruned(adapter, threshold)
    if energy is not None or rank is not None:
        small = squeezed(small, rank, energy)
    done = export(target, small, kind, dtype_of(dtype))
    return Converted(done.paths, done.proof, None if small is adapter else lost(adapter, small), adapter.left_out)


def _read(
    path: Path, content: str | Path | None, style: str | Path | None, content_weight: float, style_weight: float
) -> Adapter:
    if is_mask_file(path):
        if content is None or style is None:
            raise InputError(f"{path}: holds the masks of a merge only; give its two LoRAs with --content and --style")
        sources = (Path(content).expanduser(), Path(style).expanduser())
        return rebuilt(read_masks(path), *sources, content_weight, style_weight)
    if content is not None or style is not None:
        raise InputError(f"{path}: expected masks, since --content or --style is given, found a LoRA; leave them away")
    adapter = read_adapter(path, as_stored=True)
    adapter = replace(adapter, modules=mapped(adapter.modules, in_float32))
    if (content_weight, style_weight) == (1.0, 1.0):
        return adapter
    return weighed(adapter, content_weight, style_weight, path)
