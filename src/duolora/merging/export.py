"""A finished merge on disk, as one file, as two parts, or as masks only."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.parts import split_parts
from duolora.lora.read.keys import BUNDLED
from duolora.lora.verify import Verification, verify
from duolora.lora.write.atomic import SPLITS, check_export, part_paths, whole_files
from duolora.lora.write.file import staged_adapter
from duolora.lora.write.peft import staged_peft
from duolora.merging.mask_file import MaskFile, read_masks, rebuilt, staged_masks
from duolora.model import device
from duolora.options import DEFAULT_FORMAT, Export, Format, Written, word

DTYPES = device.DTYPES | {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """The files that were written, and the weaker of their verifications."""

    paths: tuple[Path, ...]
    verification: Verification


def untold(adapter: Adapter, format: Export) -> tuple[str, ...]:
    """The learned tokens that a format has no place for."""
    return tuple(f"{BUNDLED}{word}" for word in adapter.embeddings) if format == "peft" else ()


@dataclass(frozen=True)
class Output:
    """Where and how a result is written."""

    path: Path
    format: Export
    dtype: torch.dtype


def checked_output(out: str | Path, given: Written, formats: Any, inputs: Iterable[str | Path | None]) -> Output:
    """Where and how a result is written, once it is certain that it can and may be.

    Raises:
        InputError: there is no such format or dtype, or `out` cannot be written, is an input or may not be replaced.
    """
    path, format = Path(out).expanduser(), word("format", given.get("format", DEFAULT_FORMAT), get_args(formats))
    dtype = DTYPES[word("dtype", given.get("dtype", "float16"), list(DTYPES))]
    check_export(path, format, inputs, given.get("overwrite", True))
    return Output(path, format, dtype)


def export(
    out: Path,
    adapter: Adapter,
    format: Export = DEFAULT_FORMAT,
    dtype: torch.dtype = torch.float16,
    masks: MaskFile | None = None,
    sources: tuple[Path, Path] | None = None,
    file: Path | None = None,
) -> Exported:
    """Write a merge, of `file` if it is of one, and verify it; masks by rebuilding the merge from them and its sources.

    All files of one merge are verified as drafts and then take their names together.

    Raises:
        InputError: the merge has no masks to write.
        DuoLoRAError: it cannot be written; nothing is changed.
    """
    with whole_files() as stage:
        if format == "masks":
            if masks is None or sources is None:
                raise InputError(f"{out}: expected a merge that has masks, got none; write masks when you merge")
            draft = staged_masks(stage, out, masks)
            found = verify(adapter, rebuilt(read_masks(draft), *sources), torch.float32, out, draft.stat().st_size)
            return Exported((out,), found)
        if format == "peft":
            return Exported((out,), staged_peft(stage, out, adapter, dtype))
        if format in SPLITS:
            paths, kind = part_paths(out), SPLITS[format]
            parts = [_at_least_nothing(part, adapter) for part in split_parts(adapter, file or out)]
            verified = [staged_adapter(stage, p, part, dtype, kind) for p, part in zip(paths, parts, strict=True)]
            worst = max(verified, key=lambda one: one.error)
            return Exported(paths, replace(worst, size=sum(one.size for one in verified)))
        return Exported((out,), staged_adapter(stage, out, adapter, dtype, word("format", format, get_args(Format))))


def _at_least_nothing(part: Adapter, whole: Adapter) -> Adapter:
    """The part or, where nothing is left of it, one of no strength, so that there are always two files to slide."""
    if part.modules:
        return part
    name, lora = min(whole.modules.items())
    nothing = replace(lora, up=torch.zeros_like(lora.up[:, :1]), down=torch.zeros_like(lora.down[:1]))
    return replace(part, modules={name: nothing})
