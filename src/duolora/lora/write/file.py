"""LoRA files, written whole or not at all, and verified before they take their name."""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from duolora.errors import DuoLoRAError, InputError, Notice
from duolora.lora.adapter import Adapter
from duolora.lora.on_demand import give_back, mapped
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import read_adapter
from duolora.lora.read.header import METADATA, VERIFICATION
from duolora.lora.read.keys import BUNDLED, adapter_from
from duolora.lora.verify import TOLERANCE, Verification, identical, verify
from duolora.lora.write.atomic import Stage, check_writable, whole_files
from duolora.lora.write.diffusers import diffusers_metadata, diffusers_tensors, uniform
from duolora.lora.write.diffusers_check import ReadingFailed, error_in_diffusers
from duolora.lora.write.kohya import REORDERED, has_kohya_names, kohya_metadata, kohya_tensors
from duolora.lora.write.layout import header_json, laid_out
from duolora.options import DEFAULT_FORMAT, Format
from duolora.progress import through, underway
from duolora.provenance import tensors_hash

Writer = Callable[[Adapter, torch.dtype], tuple[dict[str, Tensor], dict[str, str]]]
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _diffusers(adapter: Adapter, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Strengths are in `up`: diffusers before 0.34, OneTrainer and ComfyUI do not read them in the header."""
    unit = mapped(adapter.modules, lambda lora: replace(lora, up=lora.scale * lora.up, scale=1.0))
    folded = replace(adapter, modules=unit)
    return diffusers_tensors(folded, dtype), diffusers_metadata(folded)


def _kohya(adapter: Adapter, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = kohya_tensors(adapter, dtype)
    for word, known in adapter.embeddings.items():
        tensors |= {f"{BUNDLED}{word}.{encoder}": rows.contiguous() for encoder, rows in known.items()}
    return tensors, kohya_metadata(adapter, tensors, dtype)


FORMATS: dict[Format, Writer] = {
    "kohya": _kohya,
    "diffusers": _diffusers,
    "uniform": lambda adapter, dtype: _diffusers(uniform(adapter), dtype),
}


def write_adapter(
    path: Path, adapter: Adapter, dtype: torch.dtype = torch.float16, format: Format = DEFAULT_FORMAT
) -> Verification:
    """Write the adapter and verify it; the same adapter gives the same bytes.

    The file is written under another name in the same folder, read back by us and by diffusers' own loader, compared
    with what was asked for, and only then put in place of what was there before. Its header says by how much it is off
    (`duolora_verification`).

    Raises:
        DuoLoRAError: it cannot be written, holds nothing, or its values do not survive `dtype`; nothing is changed.
    """
    with whole_files() as stage:
        return staged_adapter(stage, path, adapter, dtype, format)


def staged_adapter(
    stage: Stage, path: Path, adapter: Adapter, dtype: torch.dtype = torch.float16, format: Format = DEFAULT_FORMAT
) -> Verification:
    """Write and verify a draft of the file, which takes its name together with the stage's others.

    Raises:
        DuoLoRAError: as `write_adapter`.
    """
    path = path.expanduser()
    check_writable(path)
    if not adapter.modules:
        raise DuoLoRAError(f"{path}: there is nothing to write: the adapter covers no module; lower the threshold")
    if format == "kohya" and not has_kohya_names(adapter):
        what = " or ".join(adapter.families)
        warnings.warn(
            f"{path}: written in diffusers' names, since kohya's are not certain for a LoRA of {what}",
            Notice,
            stacklevel=2,
        )
        format = "diffusers"
    tensors, header = FORMATS[format](adapter, dtype)
    for key, value in through(tensors.items(), "Checking"):
        if not torch.isfinite(value).all():
            raise DuoLoRAError(f"{path}: {key} is NaN, infinite or too large for {dtype}; nothing was written")
    meant = adapter_from(tensors, header, str(path), as_stored=True)
    expected = verify(adapter, meant, dtype, path)
    with underway("Writing the file"):
        written = tensors_hash(tensors)
    said = said_of(dtype, expected.error, expected.error, written)
    metadata = adapter.metadata
    if format == "kohya" and adapter.families[0] in REORDERED:
        metadata = {key: value for key, value in metadata.items() if key != CONTENT_RANKS}
    header |= adapter.notes | {METADATA: header_json(metadata), VERIFICATION: header_json(said)}
    with underway("Writing the file"):
        draft = stage(path, laid_out(tensors, header))
    size = draft.stat().st_size
    back = read_adapter(draft, as_stored=True)
    found = replace(expected, size=size) if identical(meant, back) else verify(adapter, back, dtype, path, size)
    del tensors, meant, back
    give_back()  # before diffusers holds the file, too
    found = _in_diffusers(draft, adapter, found, dtype, path, format)
    if (known := said_of(dtype, expected.error, found.diffusers, written)) != said:
        tensors, _ = FORMATS[format](adapter, dtype)
        with underway("Writing the file"):
            size = stage(path, laid_out(tensors, header | {VERIFICATION: header_json(known)})).stat().st_size
    # learned tokens are beside a LoRA for diffusers, which refuses them in it (`load_textual_inversion`)
    for word, vectors in adapter.embeddings.items() if format != "kohya" else ():
        named = re.sub(r"[^A-Za-z0-9]+", "_", word)[:60]
        beside = path.with_name(f"{path.stem}.{named}.embedding.safetensors")
        if os.path.lexists(beside) and not os.path.lexists(path):  # else --overwrite was given
            raise InputError(f"{beside}: there is a file already; name another output, or move it away")
        stage(beside, laid_out({key: rows.contiguous() for key, rows in vectors.items()}, {}))
    return replace(found, size=size, format=format)


def _in_diffusers(
    draft: Path, adapter: Adapter, found: Verification, dtype: torch.dtype, path: Path, format: Format
) -> Verification:
    """The verification, and what diffusers' own loader makes of the file.

    kohya's files may hold parts of text encoders that diffusers does not understand; they are for other programs.
    """
    try:
        error = error_in_diffusers(draft, adapter, dtype, found.error)
    except ReadingFailed as failure:
        if format != "kohya":
            raise DuoLoRAError(
                f"{path}: diffusers cannot load what would be written ({failure}); nothing was written; "
                "check the installed versions of diffusers and PEFT, or write --format kohya"
            ) from failure
        return replace(found, unloadable=str(failure))
    if not error <= TOLERANCE[dtype]:
        raise DuoLoRAError(
            f"{path}: as diffusers loads it, a module would be off by {error:.2g} of its strength "
            f"(at most {TOLERANCE[dtype]} is accepted); nothing was written; write it in float32"
        )
    return replace(found, diffusers=error)


def said_of(dtype: torch.dtype, error: float, in_diffusers: float | None, tensors: str) -> dict[str, str | None]:
    """What the header says of the verification, and of which tensors."""
    through = None if in_diffusers is None else _rounded(in_diffusers)
    return {"dtype": _NAMES[dtype], "error": _rounded(error), "diffusers": through, "tensors": tensors}


def _rounded(error: float) -> str:
    """One digit, so that the header does not depend on the order in which a machine adds up."""
    return f"{max(error, 1e-9):.0e}"
