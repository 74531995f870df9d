"""An adapter as a folder of PEFT's, which `PeftModel.from_pretrained(unet, folder)` loads: weights and a config."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from duolora.errors import DuoLoRAError
from duolora.lora.adapter import Adapter
from duolora.lora.names import TEXT_ENCODERS
from duolora.lora.read.file import PEFT_PREFIX, peft_metadata
from duolora.lora.read.header import METADATA, PEFT_CONFIG, PEFT_WEIGHTS, VERIFICATION
from duolora.lora.read.keys import adapter_from
from duolora.lora.read.peft_config import ADAPTER_METADATA
from duolora.lora.read.stored import read_tensors
from duolora.lora.verify import Verification, verify
from duolora.lora.write.atomic import Stage
from duolora.lora.write.diffusers import diffusers_metadata, diffusers_tensors
from duolora.lora.write.file import said_of
from duolora.lora.write.layout import header_json, laid_out
from duolora.provenance import tensors_hash

NETWORKS = {"unet": "UNet", "transformer": "transformer"}


def staged_peft(stage: Stage, folder: Path, adapter: Adapter, dtype: torch.dtype) -> Verification:
    """Write and verify drafts of both files; they take their names together.

    Raises:
        DuoLoRAError: it has modules of text encoders, which are other models, or its values do not survive `dtype`.
    """
    if spoken := [name for name in adapter.modules if name.partition(".")[0] in TEXT_ENCODERS]:
        raise DuoLoRAError(
            f"{folder}: a folder of PEFT's is of one model, the {NETWORKS[adapter.family.network]}, and {spoken[0]} is "
            "of another"
        )
    if not adapter.modules:
        raise DuoLoRAError(f"{folder}: there is nothing to write: the adapter covers no module; lower the threshold")
    unit = {name: replace(lora, up=lora.scale * lora.up, scale=1.0) for name, lora in adapter.modules.items()}
    folded = replace(adapter, modules=unit)
    prefix = f"{adapter.family.network}."
    tensors = {key.removeprefix(prefix): value for key, value in diffusers_tensors(folded, dtype).items()}
    found = json.loads(diffusers_metadata(folded)[ADAPTER_METADATA])
    config = {key.removeprefix(prefix): value for key, value in found.items()} | {"peft_type": "LORA"}
    stored = {f"{PEFT_PREFIX}{key}": value for key, value in tensors.items()}
    there = stage(folder / PEFT_CONFIG, [json.dumps(config, indent=1, sort_keys=True).encode()])
    header = {ADAPTER_METADATA: peft_metadata(there)}
    error = verify(adapter, adapter_from(tensors, header, str(folder)), dtype, folder).error
    said = {VERIFICATION: header_json(said_of(dtype, error, None, tensors_hash(tensors)))}
    notes = adapter.notes | {"format": "pt", METADATA: header_json(adapter.metadata)}
    draft = stage(folder / PEFT_WEIGHTS, laid_out(stored, notes | said))
    back = {key.removeprefix(PEFT_PREFIX): value for key, value in read_tensors(draft).items()}
    size = draft.stat().st_size + there.stat().st_size
    return replace(verify(adapter, adapter_from(back, header, str(folder)), dtype, folder, size), format="peft")
