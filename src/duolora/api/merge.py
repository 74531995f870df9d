"""Merge a content LoRA and a style LoRA into one ordinary LoRA file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import check_fits, read_adapter, source_hash
from duolora.lora.verify import Proof
from duolora.merging.baselines import combined
from duolora.merging.export import check_export, dtype_of, export, export_of
from duolora.merging.fold import folded, rest
from duolora.merging.inputs import Masks, Sources, first_masks, prompts_of, sources
from duolora.merging.learn import Calibration, Learnt, calibration, learn
from duolora.merging.mask_file import MaskFile, content_ranks_of
from duolora.merging.options import METHODS, MergeOptions, check_options
from duolora.model.base import Base, BaseChoice, opened
from duolora.paper.choices import Role
from duolora.paper.constyle import Prompts
from duolora.provenance import tensor_hash, versions, weights_hash
from duolora.training.callbacks import Watcher
from duolora.training.checkpoint import checkpoint_path


@dataclass(frozen=True)
class Merged:
    """A finished merge: the file and the proof of its strength, and what was learnt on the way."""

    path: Path
    proof: Proof
    trainable: int
    """How many numbers were learnt."""
    moved: float
    """Mean change of a mask entry from the beginning to the end."""
    seconds: float
    losses: list[dict[str, float]]
    """The terms of the loss, at every tenth update."""
    content_masks: Masks
    style_masks: Masks
    left_out: tuple[str, ...] = ()
    """Parts of the two files that the merge does not carry over, such as bundled embeddings."""
    rest: int = 0
    """How many modules, of those outside the attention layers, went through by the policy `rest`."""
    paths: tuple[Path, ...] = ()
    """All files, where the format makes more than one."""


def merge(
    content: str | Path,
    style: str | Path,
    out: str | Path,
    method: str = "duolora",
    base: str | BaseChoice | Base = "atelier",
    content_images: str | Path | None = None,
    style_images: str | Path | None = None,
    content_prompt: str | None = None,
    style_prompt: str | None = None,
    merged_prompt: str | None = None,
    options: MergeOptions | None = None,
    progress: bool = True,
    announce: Callable[[Mapping[str, Role]], object] | None = None,
    format: str = "diffusers",
    dtype: str = "float16",
    watch: Watcher | None = None,
) -> Merged:
    """Merge two LoRA files into one that draws the content in the style, and write it to `out`.

    Masks are learnt against the two LoRAs themselves, on the given pictures or, where there are none, on pictures that
    each LoRA draws from its own prompt. The result is folded: it is an ordinary LoRA whose rank varies by module.

    Args:
        content: the content LoRA, a .safetensors file.
        style: the style LoRA, likewise.
        out: the .safetensors file to write.
        method: a key of `METHODS`.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        content_images: pictures of the content, a file or folder.
        style_images: pictures of the style, a file or folder.
        content_prompt: what brings out the content; by default the prompt in the file's recipe.
        style_prompt: what brings out the style, likewise.
        merged_prompt: the prompt for both; by default the content's subject with the style's ending.
        options: everything else; by default the method's own.
        progress: show bars on stderr.
        announce: called with the role of every module before anything is learnt.
        format: diffusers, kohya, uniform, split or split-kohya (two files, see `merging.export`) or masks.
        dtype: float16, bfloat16 or float32.
        watch: is told the losses and the masks as they are learnt, and shown previews of the merged prompt.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    started = time.perf_counter()
    out, options = Path(out).expanduser(), options or options_of(method)
    check_options(options)
    exported_as, precision = export_of(format), dtype_of(dtype)
    check_export(out, exported_as)
    files = {"content": Path(content).expanduser(), "style": Path(style).expanduser()}
    adapters = {kind: read_adapter(path) for kind, path in files.items()}
    loaded = opened(base)
    for kind, adapter in adapters.items():
        check_fits(adapter, loaded.lora_shapes(), files[kind])
    both = sources(loaded, adapters["content"], adapters["style"], options)
    recipe = _recipe(method, loaded, options, both) | {kind: source_hash(path) for kind, path in files.items()}
    if left_out := tuple(part for adapter in adapters.values() for part in adapter.left_out):
        recipe["left_out"] = list(left_out)
    if announce is not None:
        announce(both.roles)
    prompts = _prompts(options, adapters, content_prompt, style_prompt, merged_prompt)
    if prompts is not None:
        recipe |= {"prompt": prompts.merged, "content_prompt": prompts.content, "style_prompt": prompts.style}
    if options.masks == "none" or prompts is None:
        learnt, checkpoint = Learnt(*first_masks(both, options, loaded.device), 0.0, []), None
    else:
        data = calibration(loaded, both, options, prompts, content_images, style_images, progress)
        checkpoint = checkpoint_path(out, recipe | _learnt_from(loaded, data))
        learnt = learn(loaded, both, options, data, checkpoint, progress, watch)
    masks, others = None, rest(both, options)
    if options.combine == "masks":
        merged = folded(both, learnt.content_masks, learnt.style_masks, options) | others
        masks = MaskFile({"content": learnt.content_masks, "style": learnt.style_masks}, dict(recipe))
        recipe[CONTENT_RANKS] = content_ranks_of(merged, both, learnt.content_masks, options)
    else:
        merged = combined(both, options) | others
    done = export(out, Adapter(merged, recipe), exported_as, precision, masks, (files["content"], files["style"]))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    numbers = (learnt.trainable if checkpoint else 0, learnt.moved, time.perf_counter() - started, learnt.losses)
    masked = (learnt.content_masks, learnt.style_masks)
    return Merged(done.paths[0], done.proof, *numbers, *masked, left_out, len(others), done.paths)


def _prompts(
    options: MergeOptions, adapters: Mapping[str, Adapter], content: str | None, style: str | None, merged: str | None
) -> Prompts | None:
    """The prompts; a merge that learns nothing can do without them."""
    try:
        return prompts_of(adapters, content, style, merged)
    except InputError:
        if options.masks != "none":
            raise
        return None


def options_of(method: str, **changes: object) -> MergeOptions:
    """The options of a method, some of them changed.

    Raises:
        InputError: there is no such method.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return replace(METHODS[method], **changes)  # type: ignore[arg-type]


def _recipe(method: str, base: Base, options: MergeOptions, both: Sources) -> dict[str, object]:
    """What the file says of its making."""
    return {
        "made_by": "duolora merge",
        "method": method,
        "base": base.name,
        "base_weights": weights_hash(base.unet, base.vae, base.parts.text_encoder, base.parts.text_encoder_2),
        "options": asdict(options),
        "blocks": {name.split(".attentions")[0]: role for name, role in both.roles.items()},
        "versions": versions(),
    }


def _learnt_from(base: Base, data: Calibration) -> dict[str, object]:
    """What the masks are learnt from, beyond the recipe: a checkpoint of anything else is not gone on from."""
    schedule = base.noise_scheduler
    return {
        "x_c": tensor_hash(data.x_c),
        "x_s": tensor_hash(data.x_s),
        "noise": tensor_hash(schedule.alphas_cumprod),
        "prediction": schedule.config.prediction_type,
    }
