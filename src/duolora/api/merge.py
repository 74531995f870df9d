"""Merge a content LoRA and a style LoRA into one ordinary LoRA file: read, align, masks, fold, write."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Unpack

import torch

from duolora.errors import InputError, Notice
from duolora.lora.adapter import Adapter, check_fill, embeddings_of
from duolora.lora.families import common
from duolora.lora.on_demand import in_float32, mapped, spooled
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import check_fits, read_adapter, source_hash
from duolora.lora.read.notes import carried
from duolora.lora.verify import Verification
from duolora.merging.export import Exported, Output, checked_output, export, untold
from duolora.merging.fold import Folded, combined, folded, unmasked
from duolora.merging.inputs import (
    Calibration,
    Images,
    Masks,
    Sources,
    architecture_of_files,
    calibration,
    first_masks,
    map_of,
    prompts_of,
    sources,
    tell_no_map,
)
from duolora.merging.learn import TrainedMasks, learn
from duolora.merging.mask_file import MaskFile
from duolora.merging.options import MergeOptions, no_base, options_of as options_of
from duolora.model.architectures import Architecture
from duolora.model.base import Base, BaseChoice, Outline, opened, outlined, path_of
from duolora.model.blocks import by_block
from duolora.model.defaults import AUTO
from duolora.model.predict import noise_schedule
from duolora.model.prompts import replaced
from duolora.options import Export, Written, check
from duolora.paper.choices import Role
from duolora.paper.constyle import Prompts
from duolora.progress import shown, underway
from duolora.provenance import tensor_hash, versions
from duolora.training.callbacks import Callback
from duolora.training.checkpoint import checkpoint_path

Metadata = dict[str, object]


class MergeKeywords(Written, total=False):
    """What `merge` takes by keyword only; it says what each is."""

    content_prompt: str | None
    style_prompt: str | None
    merged_prompt: str | None
    options: MergeOptions | None
    progress: bool
    announce: Callable[[Mapping[str, Role]], object] | None
    callback: Callback | None


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """All that a merge is made from and for; every step reads it, none changes it."""

    content: Path
    style: Path
    output: Output
    method: str
    options: MergeOptions
    base: str | BaseChoice | Base | None
    images: tuple[Images, Images]
    """Of the content and of the style."""
    given: MergeKeywords


@dataclass(frozen=True, eq=False)
class Read:
    """What was read: the two LoRAs, the base if one is needed, and the architecture of either."""

    content: Adapter
    style: Adapter
    hashes: tuple[str, str]
    """SHA-256 of either."""
    base: Base | Outline | None
    architecture: Architecture
    notes: dict[str, str]
    """What people wrote about the two."""
    prompts: Prompts | None
    """None where neither the caller nor the files name any, and no step needs them."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Parts of the two files that are not carried over."""
        return (*self.content.left_out, *self.style.left_out)


@dataclass(frozen=True)
class Merged:
    """A finished merge: the file and how its strength was verified, and what was trained on the way."""

    path: Path
    verification: Verification
    trainable: int
    """How many numbers were trained."""
    mean_change: float
    """Mean change of a mask entry from the beginning to the end."""
    seconds: float
    losses: list[dict[str, float]] = field(repr=False)
    """The terms of the loss, at every tenth step."""
    content_masks: Masks = field(repr=False)
    style_masks: Masks = field(repr=False)
    left_out: tuple[str, ...] = ()
    """Parts of the two files that the merge does not carry over, such as bundled embeddings."""
    unmasked: int = 0
    """How many modules, of those outside the attention layers, went through by the policy `unmasked`."""
    paths: tuple[Path, ...] = ()
    """All files, where the format makes more than one."""


def merge(
    content: str | Path,
    style: str | Path,
    out: str | Path,
    method: str = "duolora",
    base: str | BaseChoice | Base | None = None,
    content_images: str | Path | None = None,
    style_images: str | Path | None = None,
    **given: Unpack[MergeKeywords],
) -> Merged:
    """Merge two LoRA files into one that generates the content in the style, and write it to `out`.

    Masks are trained against the two LoRAs themselves, on the given images or, where there are none, on images that
    each LoRA generates from its own prompt. The result is folded: it is an ordinary LoRA whose rank varies by module.

    Args:
        content: the content LoRA, a .safetensors file.
        style: the style LoRA, likewise.
        out: the .safetensors file to write.
        method: a key of `METHODS`.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base. By default, or for
            `auto`, there is none for a method without masks, since names and shapes of the modules say all that it
            needs, and for the others `atelier`, if the files are for that.
        content_images: images of the content, a file or folder.
        style_images: images of the style, a file or folder.
        content_prompt: the trigger prompt of the content LoRA; by default the prompt in the file's metadata.
        style_prompt: the trigger prompt of the style LoRA, likewise.
        merged_prompt: the prompt for both; by default the content's subject with the style's ending.
        options: everything else; by default the method's own.
        progress: show bars on stderr, as by default.
        announce: called with the role of every module before anything is trained.
        format: kohya (by default), diffusers, uniform, split or split-diffusers (two files), peft (a folder) or masks.
        dtype: float16 (by default), bfloat16 or float32.
        callback: is told the losses and the masks as they are trained, and shown previews of the merged prompt.
        overwrite: whether a file that is there already is replaced, as by default; an input never is.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    started = time.perf_counter()
    sources, images = (Path(content).expanduser(), Path(style).expanduser()), (content_images, style_images)
    options = given.get("options") or options_of(method)
    check(options)
    output = checked_output(out, given, Export, (*sources, path_of(base)))
    asked = MergeInputs(*sources, output, method, options, base, images, given)
    with shown(given.get("progress", True)):
        found = _read(asked)
        both = _align(asked, found)
        metadata = _metadata(asked, found, both)
        trained = _masks(asked, found, both, metadata)
        done = _write(asked, found, trained, _fold(asked, both, trained), metadata)
    return _merged(asked, found, both, trained, done, time.perf_counter() - started)


def _read(asked: MergeInputs) -> Read:
    """The two files, and the base where a step needs one or the caller names one."""
    content, style = _adapter(asked, asked.content), _adapter(asked, asked.style)
    common([(asked.content, content.families), (asked.style, style.families)])
    check_fill([(asked.content, content), (asked.style, style)])
    with underway("Hashing the files"):
        hashes = source_hash(asked.content), source_hash(asked.style)
    _remark(asked, content, style, hashes)
    try:
        prompts = _prompts(asked, content, style)
    except InputError as missing:
        _choice(asked, content, style, f"{missing}; ")  # both at once, where the base is not known either
        raise
    choice = _choice(asked, content, style)
    base: Base | Outline | None = None
    if isinstance(choice, BaseChoice) and not asked.options.asks_network:
        base = outlined(choice)
    elif choice is not None:
        base = opened(choice, once=True)
    if base is not None:
        shapes = base.lora_shapes() if isinstance(base, Base) else base.shapes
        for adapter, path in ((content, asked.content), (style, asked.style)):
            check_fits(adapter, shapes, path)
    architecture = architecture_of_files(content, style) if base is None else base.architecture
    notes = carried({"content": content, "style": style})
    return Read(content, style, hashes, base, architecture, notes, prompts)


def _adapter(asked: MergeInputs, path: Path) -> Adapter:
    """One of the files; where no network holds them, modules are read one at a time, as each is merged."""
    if asked.options.asks_network:
        return read_adapter(path)
    adapter = read_adapter(path, as_stored=True)
    return replace(adapter, modules=mapped(adapter.modules, in_float32))


def _remark(asked: MergeInputs, content: Adapter, style: Adapter, hashes: tuple[str, str]) -> None:
    """Warn of two files that are one, and of files that seem to be exchanged."""
    if hashes[0] == hashes[1]:
        warnings.warn(f"{asked.content} and {asked.style} are the same LoRA", Notice, stacklevel=4)
    elif content.metadata.get("kind") == "style" and style.metadata.get("kind") != "style":
        warnings.warn(
            f"{asked.content}: given for the content, but its file says that it was trained on a style; are the two "
            "exchanged?", Notice, stacklevel=4,
        )  # fmt: skip


def _choice(asked: MergeInputs, content: Adapter, style: Adapter, also: str = "") -> BaseChoice | Base | None:
    """The base that was named or, for a method that trains masks, the one that the files are for.

    Raises:
        InputError: it is not known; `also` is what is missing besides.
    """
    choice = asked.base if isinstance(asked.base, Base | BaseChoice) else BaseChoice(str(asked.base or AUTO))
    if not isinstance(choice, BaseChoice) or choice.base != AUTO:
        return choice
    if not asked.options.asks_network:
        return None
    if (found := architecture_of_files(content, style).name) != "atelier":
        raise InputError(also + no_base(asked.method, found))
    return replace(choice, base=found)


def _prompts(asked: MergeInputs, content: Adapter, style: Adapter) -> Prompts | None:
    """The prompts; a merge that asks no network can do without them."""
    adapters = {"content": content, "style": style}
    try:
        given = asked.given
        return prompts_of(adapters, given.get("content_prompt"), given.get("style_prompt"), given.get("merged_prompt"))
    except InputError:
        if asked.options.asks_network:
            raise
        return None


def _align(asked: MergeInputs, found: Read) -> Sources:
    """The modules of both side by side, in the basis in which masks act, each with its role."""
    tell_no_map(found.architecture, asked.options)
    both = sources(found.architecture, found.content, found.style, asked.options)
    if (announce := asked.given.get("announce")) is not None:
        announce(both.roles)
    return both


def _metadata(asked: MergeInputs, found: Read, both: Sources) -> Metadata:
    """What the file says of its making."""
    base, prompts = found.base, found.prompts
    made_for: Metadata = {"architecture": found.architecture.name} if base is None else {"base": base.name}
    if isinstance(base, Base):
        made_for["base_weights"] = base.weights_hash()
    said: Metadata = {}
    if asked.options.needs_roles or found.architecture.levels is not None:
        said["blocks"] = by_block(both.roles)
    if prompts is not None:
        said |= {"prompt": prompts.merged, "content_prompt": prompts.content, "style_prompt": prompts.style}
    return {
        "made_by": "duolora merge",
        "method": asked.method,
        **made_for,
        "options": asdict(asked.options) | {"block_map": map_of(found.architecture, asked.options)},
        "versions": versions(),
        "content": found.hashes[0],
        "style": found.hashes[1],
        "files": [asked.content.name, asked.style.name],
        **({"left_out": list(found.left_out)} if found.left_out else {}),
        **said,
    }


def _masks(asked: MergeInputs, found: Read, both: Sources, metadata: Metadata) -> TrainedMasks:
    """The masks, trained where the method trains any."""
    options, base, prompts = asked.options, found.base, found.prompts
    if not options.asks_network or not isinstance(base, Base) or prompts is None:
        first = first_masks(both, options, base.device if isinstance(base, Base) else torch.device("cpu"))
        return TrainedMasks(*first, mean_change=0.0, losses=[])
    progress = asked.given.get("progress", True)
    with replaced(base.parts, embeddings_of(found.content, found.style)):
        data = calibration(base, both, options, prompts, asked.images, progress)
        checkpoint = checkpoint_path(asked.output.path, metadata | _trained_from(base, data))
        return learn(base, both, options, data, checkpoint, progress, asked.given.get("callback"))


def _trained_from(base: Base, data: Calibration) -> Metadata:
    """What the masks are trained from, beyond the metadata: a checkpoint of anything else is not gone on from."""
    schedule = noise_schedule(base)
    return {
        "x_c": tensor_hash(data.x_c),
        "x_s": tensor_hash(data.x_s),
        "noise": tensor_hash(torch.stack((schedule.alpha, schedule.sigma))),
        "prediction": "flow" if schedule.flow else "velocity" if schedule.velocity else "noise",
    }


def _fold(asked: MergeInputs, both: Sources, trained: TrainedMasks) -> Folded:
    """Masks and LoRAs as one ordinary LoRA."""
    if asked.options.combine != "masks":
        return Folded(spooled(chain(combined(both, asked.options), unmasked(both, asked.options).items())))
    return folded(both, trained.content_masks, trained.style_masks, asked.options)


def _write(asked: MergeInputs, found: Read, trained: TrainedMasks, merged: Folded, metadata: Metadata) -> Exported:
    """The files, read back and verified; the checkpoint has had its day then."""
    ranks = {} if merged.content_ranks is None else {CONTENT_RANKS: merged.content_ranks}
    parts = {"content": trained.content_masks, "style": trained.style_masks}
    masks = MaskFile(parts, metadata, found.notes) if ranks else None
    families = common([(asked.content, found.content.families), (asked.style, found.style.families)])
    embeddings = embeddings_of(found.content, found.style)
    adapter = Adapter(merged.modules, metadata | ranks, notes=found.notes, families=families, embeddings=embeddings)
    to = asked.output
    done = export(to.path, adapter, to.format, to.dtype, masks, (asked.content, asked.style))
    if trained.checkpoint is not None:
        trained.checkpoint.unlink(missing_ok=True)
    return done


def _merged(
    asked: MergeInputs, found: Read, both: Sources, trained: TrainedMasks, done: Exported, seconds: float
) -> Merged:
    """What the caller is told of the finished merge."""
    untaken = (untold(each, asked.output.format) for each in (found.content, found.style))
    return Merged(
        path=done.paths[0],
        verification=done.verification,
        trainable=trained.trainable if trained.checkpoint else 0,
        mean_change=trained.mean_change,
        seconds=seconds,
        losses=trained.losses,
        content_masks=trained.content_masks,
        style_masks=trained.style_masks,
        left_out=(*found.left_out, *chain.from_iterable(untaken)),
        unmasked=len(unmasked(both, asked.options)),
        paths=done.paths,
    )
