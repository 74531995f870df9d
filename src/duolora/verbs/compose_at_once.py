"""Any number of LoRAs merged at once into one file, their masks in closed form (`merging.many`)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from duolora.adapters.adapter import Adapter
from duolora.adapters.files import check_fits, check_writable, read_adapter, write_adapter
from duolora.adapters.reading import source_hash
from duolora.errors import InputError
from duolora.merging.export import dtype_of
from duolora.merging.fold import Kind
from duolora.merging.many import Taught, merged_at_once
from duolora.methods import MergeOptions, check_options
from duolora.networks.bases import Base, BaseChoice, opened
from duolora.provenance import versions
from duolora.verbs.compose import Composed, format_of, left_out_of
from duolora.verbs.merge import options_of


def compose_at_once(
    loras: Sequence[str | Path],
    out: str | Path,
    base: str | BaseChoice | Base = "atelier",
    prompts: Sequence[str] = (),
    images: Sequence[str | Path | None] = (),
    kinds: Sequence[str] = (),
    merged_prompt: str | None = None,
    options: MergeOptions | None = None,
    format: str = "diffusers",
    dtype: str = "float16",
    progress: bool = True,
) -> Composed:
    """Merge any number of LoRAs at once, each with masks in closed form (`merge` with the method oneshot, for more).

    Args:
        loras: two or more LoRA files.
        out: the .safetensors file to write.
        base: a name, path or hub id, a choice of how to run it, or a loaded base.
        prompts: what brings out each LoRA; by default the prompts in the files' recipes.
        images: pictures of each, a file or folder; by default each LoRA draws some from its prompt.
        kinds: what each is for, content or style; they then lead in the modules of that role. Without them no LoRA
            leads anywhere.
        merged_prompt: the prompt for all together, for the option `mixed`; by default all prompts in a row.
        options: everything else; by default `one_shot_options`.
        format: diffusers, kohya or uniform.
        dtype: float16, bfloat16 or float32.
        progress: show bars on stderr.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    paths, target = [Path(path).expanduser() for path in loras], Path(out).expanduser()
    if len(paths) < 2:
        raise InputError(f"expected at least two LoRA files to merge, got {len(paths)}")
    options, written = options or one_shot_options(kinds), (dtype_of(dtype), format_of(format))
    check_options(options)
    for name, given in (("prompts", prompts), ("images", images), ("kinds", kinds)):
        if given and len(given) != len(paths):
            raise InputError(f"{name}: expected {len(paths)}, one for each file, got {len(given)}")
    check_writable(target)
    adapters = [read_adapter(path) for path in paths]
    said = _prompts(paths, adapters, prompts)
    loaded = opened(base)
    for path, adapter in zip(paths, adapters, strict=True):
        check_fits(adapter, loaded.lora_shapes(), path)
    chosen, pictures = kinds or ["content"] * len(paths), images or [None] * len(paths)
    taught = [
        Taught(adapter, prompt, _kind(kind), found)
        for adapter, prompt, kind, found in zip(adapters, said, chosen, pictures, strict=True)
    ]
    together = merged_prompt or ", ".join(each.prompt for each in taught)
    modules = merged_at_once(loaded, taught, together, options, progress)
    recipe: dict[str, object] = {
        "made_by": "duolora compose", "method": "oneshot", "base": loaded.name, "prompt": together,
        "sources": [
            {"file": source_hash(path), "prompt": each.prompt, "kind": each.kind}
            for path, each in zip(paths, taught, strict=True)
        ],
        "options": asdict(options), "versions": versions(),
    }  # fmt: skip
    left_out = left_out_of(adapters, recipe)
    return Composed(target, write_adapter(target, Adapter(modules, recipe), *written), left_out)


def one_shot_options(kinds: Sequence[str], **changes: object) -> MergeOptions:
    """The options of the method oneshot; where nobody said what each LoRA is for, every teacher counts everywhere."""
    plain: dict[str, object] = {} if kinds else {"off_role": 1.0}
    return options_of("oneshot", **(plain | changes))


def _prompts(paths: Sequence[Path], adapters: Sequence[Adapter], given: Sequence[str]) -> list[str]:
    """What brings out each LoRA: as given, or from the files' recipes."""
    found = []
    for path, adapter, prompt in zip(paths, adapters, given or [""] * len(paths), strict=True):
        said = prompt or adapter.recipe.get("prompt")
        if not isinstance(said, str) or not said.strip():
            raise InputError(f"{path}: its file names no prompt or trigger word; give one for each file with --prompt")
        found.append(said)
    return found


def _kind(name: str) -> Kind:
    kind = next((known for known in get_args(Kind) if known == name), None)
    if kind is None:
        raise InputError(f"kinds: expected content or style, got {name!r}")
    return kind
