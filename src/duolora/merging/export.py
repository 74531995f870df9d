"""A finished merge on disk, as one file, as two halves, or as masks only."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.parts import halves
from duolora.lora.verify import Proof, proof
from duolora.lora.write.atomic import SPLITS, half_paths, whole_files
from duolora.lora.write.file import staged_adapter
from duolora.lora.write.peft import staged_peft
from duolora.merging.mask_file import MaskFile, read_masks, rebuilt, staged_masks
from duolora.model import device
from duolora.options import DEFAULT_FORMAT, Export, Format, word

SINGLE: dict[str, Format] = {"kohya": "kohya", "diffusers": "diffusers", "uniform": "uniform"}
DTYPES = device.DTYPES | {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """The files that were written, and the weaker of their proofs."""

    paths: tuple[Path, ...]
    proof: Proof


def dtype_of(name: str) -> torch.dtype:
    """The dtype of this name.

    Raises:
        InputError: there is none.
    """
    return DTYPES[word("dtype", name, list(DTYPES))]


def export(
    out: Path,
    adapter: Adapter,
    format: Export = DEFAULT_FORMAT,
    dtype: torch.dtype = torch.float16,
    masks: MaskFile | None = None,
    sources: tuple[Path, Path] | None = None,
) -> Exported:
    """Write a merge and prove it; masks are proved by rebuilding the merge from them and its sources.

    All files of one merge are proved as drafts and then take their names together.

    Raises:
        InputError: the merge has no masks to write.
        DuoLoRAError: it cannot be written; nothing is changed.
    """
    with whole_files() as stage:
        if format == "masks":
            if masks is None or sources is None:
                raise InputError(f"{out}: expected a merge that has masks, got none; write masks when you merge")
            draft = staged_masks(stage, out, masks)
            found = proof(adapter, rebuilt(read_masks(draft), *sources), torch.float32, out, draft.stat().st_size)
            return Exported((out,), found)
        if format == "peft":
            return Exported((out,), staged_peft(stage, out, adapter, dtype))
        if format in SPLITS:
            paths, kind = half_paths(out), SPLITS[format]
            parts = [_at_least_nothing(half, adapter) for half in halves(adapter, out)]
            proofs = [staged_adapter(stage, p, half, dtype, kind) for p, half in zip(paths, parts, strict=True)]
            worst = max(proofs, key=lambda one: one.error)
            return Exported(paths, replace(worst, size=sum(one.size for one in proofs)))
        return Exported((out,), staged_adapter(stage, out, adapter, dtype, SINGLE[format]))


def _at_least_nothing(half: Adapter, whole: Adapter) -> Adapter:
    """The half or, where nothing is left of it, one of no strength, so that there are always two files to slide."""
    if half.modules:
        return half
    name, lora = min(whole.modules.items())
    nothing = replace(lora, up=torch.zeros_like(lora.up[:, :1]), down=torch.zeros_like(lora.down[:1]))
    return replace(half, modules={name: nothing})
