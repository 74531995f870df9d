"""The header of a .safetensors file, read before a byte of its tensors, so that a hostile one costs nothing."""

import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from duolora.errors import FileRefused

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METADATA, VERIFICATION = "duolora", "duolora_verification"
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_LARGEST = 10_000_000
"""Bytes of a header. Parsed, a hostile one takes up to 19 times as much memory; a LoRA of all of SDXL has 0.5 MB."""
_LONGEST = 200
"""Letters in a key; the longest of SDXL has under 120."""


class _Duplicate(ValueError):
    """A key that is there twice."""


def weights_of(path: Path) -> Path:
    """The file with the weights of a LoRA: in a PEFT folder its weights, else the file itself."""
    path = path.expanduser()
    return path / PEFT_WEIGHTS if os.path.isfile(path / PEFT_CONFIG) else path


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The tensors that the header announces, as {key: {dtype, shape, data_offsets}}, and its metadata.

    Raises:
        FileRefused: there is no such file, it is a pickle, or the header is not that of a whole file.
    """
    if os.path.isdir(path):
        raise FileRefused(f"{path}: expected a .safetensors file, got a folder; name the file in it")
    if not os.path.isfile(path):
        raise FileRefused(f"{shortened(path)}: expected a .safetensors file, found nothing there; check the path")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            _refuse_pickle(path, start)
            if len(start) < 9:
                raise _damaged(path, f"its length: expected at least 9 bytes, found {size}")
            length = int.from_bytes(start[:8], "little")
            if length > min(size - 8, _LARGEST):
                raise _damaged(path, f"its header: expected at most {min(size - 8, _LARGEST)} bytes, found {length}")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise FileRefused(f"{path}: it cannot be opened ({error.strerror}); check its permissions") from error
    entries = _parsed(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "__metadata__: expected texts under names")
    _check(path, entries, size - 8 - length)
    return entries, metadata


def making(metadata: Mapping[str, str], file: str) -> dict[str, Any]:
    """How a LoRA file was made: our own metadata, or the trigger words of another program's header.

    Raises:
        FileRefused: our own are no JSON object.
    """
    words = metadata.get("modelspec.trigger_phrase", "").strip()
    return json_object(metadata, METADATA, file) or ({"prompt": words} if words else {})


def json_object(metadata: Mapping[str, str], key: str, file: str) -> dict[str, Any]:
    """A JSON object of the header; empty where there is none.

    Raises:
        FileRefused: it is no JSON object, or has NaN or infinite numbers, which are not valid JSON.
    """
    try:
        value = json.loads(metadata.get(key) or "{}", parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FileRefused(f"{file}: {key} in its header is not JSON; download the file again") from error
    if not isinstance(value, dict):
        raise FileRefused(f"{file}: {key} in its header: expected an object, got {type(value).__name__}")
    return value


def _finite(text: str) -> float:
    """A number with a point or an exponent; NaN and 1e400, infinite as a float, are none that JSON could say again."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _Duplicate as error:
        raise _damaged(path, f"its header: expected every key once, found {str(error)[:_LONGEST]} twice") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header: expected JSON, found something else") from error
    if not isinstance(found, dict):
        raise _damaged(path, f"its header: expected an object, found {type(found).__name__}")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return found


def _check(path: Path, entries: Mapping[str, Any], data: int) -> None:
    """Make sure that shapes and places are possible, and that they fill the rest of the file."""
    spans = []
    for key, entry in entries.items():
        if len(key) > _LONGEST:
            raise _damaged(path, f"{key[:60]}… has {len(key)} letters; expected at most {_LONGEST}")
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            raise _damaged(path, f"{key}: expected dtype, shape and data_offsets, found {reprlib.repr(entry)}")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _naturals(shape) or len(shape) > 8:
            raise _damaged(path, f"{key}: shape: expected a few numbers from 0 on, found {reprlib.repr(shape)}")
        if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data:
            raise _damaged(
                path, f"{key}: data_offsets: expected two within {data} bytes, found {reprlib.repr(offsets)}"
            )
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _BITS:
            raise FileRefused(
                f"{path}: {key}: dtype: expected one of {', '.join(_BITS)}, found {reprlib.repr(entry['dtype'])}; "
                "save the file in float16, bfloat16 or float32"
            )
        size = math.prod(shape) * _BITS[entry["dtype"]] // 8
        if size != offsets[1] - offsets[0]:
            found = f"expected {reprlib.repr(size)} bytes for {reprlib.repr(shape)}, found {offsets[1] - offsets[0]}"
            raise _damaged(path, f"{key}: {found}")
        spans.append((offsets[0], offsets[1], key))
    end = 0
    for first, last, key in sorted(spans):
        if first != end:
            raise _damaged(path, f"{key}: expected its data to begin at byte {end}, found {first}")
        end = last
    if end != data:
        raise _damaged(path, f"its data: expected {end} bytes as the header says, found {data}")


def shortened(path: Path) -> str:
    """The path for a message, by its end where it is absurdly long."""
    text = str(path)
    return text if len(text) <= 300 else f"…{text[-100:]}"


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in value)


def _damaged(path: Path, why: str) -> FileRefused:
    return FileRefused(f"{path}: {why}; the file is damaged or no .safetensors file; download it again")


def _refuse_pickle(path: Path, start: bytes) -> None:
    """Refuse pickles by name or first bytes, none of which is opened with torch."""
    disguised = start.startswith(_PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix.lower() in _PICKLE_SUFFIXES or disguised:
        raise FileRefused(
            f"{path}: expected a .safetensors file, got a pickle, which can run programs when opened and so was not; "
            "ask for it as .safetensors"
        )


MASKS = "duolora_masks"
"""The header's key of a file that holds masks only (see `merging.mask_file`)."""
_KINDS = {
    "a DoRA": r"dora_scale|lora_magnitude_vector",
    "a LoHa": r"\.hada_[wt]\d",
    "a LoKr": r"\.lokr_[wt]\d",
    "an OFT adapter": r"\.oft_(?:blocks|diag|R)\b",
    "a GLoRA": r"\.[ab][12]\.weight$",
    "an (IA)³": r"\.on_input$",
    "a file of whole differences": r"\.(?:diff|[wb]_norm)$",
    "a LoRA with biases": r"\.lora_(?:B|up)\.(?:\w+\.)?bias$",
}
_BASES = {
    "the T5 text encoder": r"^lora_te3_|^text_encoder_3\.|^text_encoders\.t5xxl",
    "PixArt or a similar network": r"adaln_single\.emb\.(?:resolution|aspect)",
    "Stable Cascade": r"^lora_prior_",
}
"""Networks whose LoRAs diffusers does not load."""
_NORMS = r"(?:query|key)_norm\.scale$|\.norm_(?:added_)?[qk]\.weight$"
"""Weights of a transformer that are in no plain LoRA."""
CONTROL = (
    "makes it a control LoRA, which changes what the network is given; expected a plain LoRA; load it beside the merge"
)
_FOREIGN = (
    *((p, f"makes it {kind}; expected a plain LoRA; convert it to one first") for kind, p in _KINDS.items()),
    (r"\.lora\.weight$", "makes it a merge by ziplora-pytorch, which holds whole weights and no factors; expected a "
     "plain LoRA; merge its two LoRAs again with `duolora merge --method ziplora`"),
    *((p, f"belongs to {base}, of which diffusers loads no LoRA; expected one for SDXL, Stable Diffusion or a "
       "transformer that diffusers has") for base, p in _BASES.items()),
    (rf"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.|{_NORMS}", "belongs to "
     "a whole model; expected a LoRA; a whole model goes in as the base"),
)  # fmt: skip
"""What keys that match say of their file, the first that is found."""


def refuse_foreign(keys: Iterable[str], metadata: Mapping[str, str], file: str) -> None:
    """Raise FileRefused if the keys are not those of a plain LoRA, saying whose they are."""
    keys = sorted(keys)
    if MASKS in metadata:
        raise FileRefused(
            f"{file}: expected a LoRA, found the masks of a merge only; rebuild it with `duolora convert {file} "
            "--content FILE --style FILE --out FILE`"
        )
    lora = any("lora" in key.lower() for key in keys)
    for pattern, why in ((rf"^lora_controlnet$|{_NORMS}", CONTROL), *_FOREIGN) if lora else _FOREIGN:
        if key := next(filter(re.compile(pattern).search, keys), None):
            raise FileRefused(f"{file}: {key} {why}")
    if not lora:
        example = f", such as {keys[0]}" if keys else ""
        raise FileRefused(f"{file}: expected keys of a LoRA, found none among {len(keys)}{example}; give a LoRA file")
    for key in keys:
        if key.startswith("base_model.model."):
            raise FileRefused(
                f"{file}: {key} is PEFT's name, whose strength is kept in another file; "
                "expected diffusers' or kohya's names; save it with diffusers' save_lora_weights"
            )
