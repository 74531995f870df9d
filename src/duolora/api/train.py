"""Train a LoRA on a few images (Sec. 4, "Implementation details"): one verb, one file out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from duolora.errors import DuoLoRAError, InputError
from duolora.lora.adapter import Adapter
from duolora.lora.verify import Verification
from duolora.lora.write.atomic import check_out
from duolora.lora.write.file import write_adapter
from duolora.model.architectures import modules_within, shapes_in
from duolora.model.base import Base, BaseChoice, opened, path_of
from duolora.model.defaults import FITS, read_defaults
from duolora.model.image_files import image_paths
from duolora.model.images import load_images
from duolora.model.prompts import identifiers, own_vectors, refuse_unread, replaced
from duolora.model.unets import SDXL
from duolora.options import word
from duolora.paper.lowrank import LowRank
from duolora.provenance import file_hash, versions
from duolora.training.callbacks import Callback
from duolora.training.checkpoint import checkpoint_path
from duolora.training.loop import SAVE_EVERY, Task, train_factors
from duolora.training.options import TrainOptions, check_training, training_of

_NAME = "learning"


def default_options(base: str, kind: str = "content") -> TrainOptions:
    """The options for a LoRA of a subject ("content") or a style on a base: the base's own, or the paper's."""
    return training_of(read_defaults(base), kind)


@dataclass(frozen=True)
class Trained:
    """A finished LoRA: the file, how its strength was verified, and the loss at every tenth step."""

    path: Path
    verification: Verification
    losses: list[float] = field(repr=False)


class TrainKeywords(TypedDict, total=False):
    """What `train` takes by keyword only; it says what each is."""

    callback: Callback | None
    fit: str
    overwrite: bool
    kind: str | None
    save_every: int
    about: Mapping[str, object]


def train(
    images: str | Path,
    prompt: str,
    out: str | Path,
    base: str | BaseChoice | Base = "atelier",
    options: TrainOptions | None = None,
    progress: bool = True,
    **given: Unpack[TrainKeywords],
) -> Trained:
    """Train a LoRA on q, k, v and out of every attention, from images and one prompt, and write it to `out`.

    Latents and prompt embeddings are computed once; only the low-rank factors learn. A run that is stopped goes on
    from its last checkpoint (beside `out`) when the same call is made again, to the same bytes.

    Args:
        images: a folder of images, or one image.
        prompt: what the images show, with an identifier in it, such as "a sks teapot in flat style".
        out: the .safetensors file to write.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        options: rank, steps, batch, learning rate, seed, blocks; by default those that suit the base.
        progress: show a bar on stderr.
        callback: is told the losses, and shown previews of the prompt.
        fit: how an image becomes a square: crop (about its centre; the default), pad (with white) or resize.
        overwrite: whether a file that is there already is replaced, as by default; an input never is.
        kind: content or style, what the images show; a base may have other options for the two, and the file says it.
        save_every: steps from one checkpoint to the next, by default 100; Ctrl-C leaves one, too.
        about: what else the file's metadata say, and in place of what they would.

    Raises:
        DuoLoRAError: an image, the prompt, the base or the output path cannot be used.
    """
    out, fit, save_every = Path(out).expanduser(), given.get("fit", "crop"), given.get("save_every", SAVE_EVERY)
    _check(prompt, out, base, given)
    loaded, options, files = _opened(base, options, given.get("kind") or "content", images)
    refuse_unread(loaded.parts, [prompt])
    tokens = _tokens(loaded, prompt) if options.learn_tokens else {}
    metadata = _metadata(loaded, prompt, options, files, given)
    pixels = load_images(images, loaded.resolution, fit)
    latents = loaded.encode_images(torch.cat((pixels, pixels.flip(-1))) if options.flip else pixels)
    checkpoint = checkpoint_path(out, metadata)
    with _lora(loaded, options) as factors, replaced(loaded.parts, tokens):
        named = {f"{n}.{side}": p for n, pair in factors.items() for side, p in zip(("up", "down"), pair, strict=True)}
        named |= {f"{word}.{key}": rows for word, known in tokens.items() for key, rows in known.items()}
        task = Task(latents, prompt, (_NAME,))
        losses = train_factors(loaded, [task], named, options, checkpoint, progress, given.get("callback"), save_every)
        modules = {name: LowRank(up.detach().clone(), down.detach().clone()) for name, (up, down) in factors.items()}
    size = {"modelspec.resolution": f"{loaded.resolution}x{loaded.resolution}"}
    embeddings = {word: {key: rows.detach().cpu() for key, rows in known.items()} for word, known in tokens.items()}
    verification = write_adapter(out, Adapter(modules, metadata, notes=size, embeddings=embeddings))
    checkpoint.unlink(missing_ok=True)
    return Trained(out, verification, losses)


def _check(prompt: str, out: Path, base: str | BaseChoice | Base, given: TrainKeywords) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        InputError: there is no prompt, or a choice or the output path cannot be used.
    """
    if not prompt.strip():
        raise InputError("prompt: expected words that say what the images show, got none")
    check_out(out, [path_of(base)], given.get("overwrite", True))
    word("fit", given.get("fit", "crop"), list(FITS))
    if (save_every := given.get("save_every", SAVE_EVERY)) < 1:
        raise InputError(f"save_every: expected 1 or more steps, got {save_every}")
    word("kind", given.get("kind") or "content", ("content", "style"))


def _metadata(
    base: Base, prompt: str, options: TrainOptions, files: Sequence[Path], given: TrainKeywords
) -> dict[str, object]:
    """What the file says of its making."""
    kind = given.get("kind")
    return {
        "made_by": "duolora train",
        "base": base.name,
        "base_weights": base.weights_hash(),
        "prompt": prompt,
        "options": asdict(options),
        "fit": given.get("fit", "crop"),
        "resolution": base.resolution,
        **({} if kind is None else {"kind": kind}),
        "images": [file_hash(path) for path in files],
        "versions": versions(),
        **given.get("about", {}),
    }


def _opened(
    base: str | BaseChoice | Base, options: TrainOptions | None, kind: str, images: str | Path
) -> tuple[Base, TrainOptions, list[Path]]:
    """The base, the options that hold on it, and the images; what can be refused is before the base is loaded."""
    if options is not None:
        check_training(options)
    files = image_paths(images)
    name = base.name if isinstance(base, Base) else base.base if isinstance(base, BaseChoice) else base
    options = options or default_options(name, kind)
    check_training(options, base.architecture.shapes if isinstance(base, Base) else shapes_in(name))
    return opened(base, once=True), options, files


def _tokens(base: Base, prompt: str) -> dict[str, dict[str, Tensor]]:
    """The vectors of the prompt's identifiers, to be trained.

    Raises:
        InputError: there is no identifier, or the text encoders take turns on the device or are not SDXL's.
    """
    if base.kind is not SDXL:
        raise InputError(
            f"learn_tokens: expected {SDXL.name}, whose two text encoders are CLIP's, got {base.kind.name}"
        )
    if base.offload != "none":
        raise InputError(f"learn_tokens: expected no offloading, got {base.offload}: the text encoders are needed, too")
    if not (words := identifiers(base.parts, prompt.split())):
        raise InputError(f'prompt: expected an identifier, such as "sks", whose vectors are trained, got {prompt!r}')
    return {
        word: {key: rows.to(base.device).requires_grad_() for key, rows in known.items()}
        for word, known in own_vectors(base.pipeline(), words).items()
    }


@contextmanager
def _lora(base: Base, options: TrainOptions) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """PEFT's LoRA on the base's attention, as {module: (up, down)}, float32; gone again on leaving."""
    names = modules_within(base.architecture.shapes, options.blocks)
    config = LoraConfig(r=options.rank, lora_alpha=options.rank, init_lora_weights="gaussian", target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        base.unet.add_adapter(config, adapter_name=_NAME)
    try:
        layers = {name: base.unet.get_submodule(name) for name in names}
        for layer in layers.values():
            if not isinstance(layer, LoraLayer):
                raise DuoLoRAError(
                    "PEFT did not put its LoRA on the attention layers; the installed version is too old"
                )
            layer.lora_A[_NAME].float()
            layer.lora_B[_NAME].float()
        yield {n: (m.lora_B[_NAME].weight, m.lora_A[_NAME].weight) for n, m in layers.items()}
    finally:
        base.unet.unload_lora()
        base.unet.requires_grad_(False).eval()
