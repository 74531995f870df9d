"""Generate images from prompts, with LoRA files loaded the way everybody loads them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from duolora.api.generated import check_list, first_number, write_list
from duolora.errors import BaseMismatch, reason
from duolora.lora.adapter import embeddings_of
from duolora.lora.read.file import check_fits, read_adapter, read_metadata
from duolora.lora.write.atomic import check_folder, whole_files
from duolora.lora.write.diffusers import diffusers_tensors, uniform
from duolora.model.base import Base, BaseChoice, opened
from duolora.model.defaults import STEPS, Sampling, check_sampling
from duolora.model.images import as_image
from duolora.model.prompts import identifiers, refuse_unread, replaced, unread
from duolora.model.sample import sample_images
from duolora.options import check_weights, several
from duolora.provenance import versions


class GenerateKeywords(TypedDict, total=False):
    """What `generate` takes by keyword only; it says what each is."""

    steps: int
    guidance: float | None
    weights: Sequence[float] | None
    progress: bool


def generate(
    prompts: str | Sequence[str],
    out: str | Path,
    loras: str | Path | Sequence[str | Path] = (),
    base: str | BaseChoice | Base = "atelier",
    num: int = 4,
    seed: int = 0,
    **given: Unpack[GenerateKeywords],
) -> list[Path]:
    """Generate `num` images of each prompt into the folder `out`; returns the files.

    Image k of a prompt uses the seed `seed + k`, whatever else is generated, and is named `<prompt number>-<seed>.png`.
    In a folder with such images the numbers go on, and none is replaced. `generated.json` lists the new ones, which
    `evaluate` goes by.

    Args:
        prompts: one prompt or several.
        out: the folder, made if need be.
        loras: LoRA files to apply, together; or one.
        base: a name, path or hub id (see `load_base`), a choice of how to run it, or a loaded base.
        num: images of each prompt.
        seed: the first seed.
        steps: denoising steps, by default 25.
        guidance: classifier-free guidance scale, by default what suits the base; 1 is none.
        weights: the strength of each LoRA, by default 1.
        progress: show a bar on stderr, as by default.

    Raises:
        DuoLoRAError: an input cannot be used.
    """
    prompts, loras = several(prompts), several(loras)
    steps, guidance, weights = given.get("steps", STEPS), given.get("guidance"), given.get("weights")
    progress = given.get("progress", True)
    check_sampling(prompts, Sampling(num, steps, Sampling.guidance if guidance is None else guidance))
    check_weights(weights, len(loras))
    folder = new_folder(out)
    check_list(folder)
    loaded = opened(base)
    if any(unread(loaded.parts, prompt) for prompt in prompts):
        refuse_unread(loaded.parts, prompts, identifiers(loaded.parts, _prompt_words(loras)))
    seeds = [seed + k for _ in prompts for k in range(num)]
    with applied(loaded, loras, weights):
        each = [prompt for prompt in prompts for _ in range(num)]
        images = sample_images(loaded, each, seeds, steps, guidance, progress=progress)
    files, first = [], first_number(folder)
    for k, image in enumerate(images):
        files.append(folder / f"{first + k // num:02d}-{seeds[k]}.png")
        file = BytesIO()
        as_image(image).save(file, "PNG")
        with whole_files() as stage:
            stage(files[-1], [file.getvalue()])
    write_list(
        folder, files, each, seeds, base=loaded.name, loras=[str(p) for p in loras],
        weights=weights, steps=steps, guidance=guidance, versions=versions(),
    )  # fmt: skip
    return files


def _prompt_words(loras: Sequence[str | Path]) -> list[str]:
    """The words of the prompts that LoRA files were made with, as far as they say."""
    words: list[str] = []
    for path in loras:
        said = read_metadata(Path(path)).items()
        for prompt in (value for key, value in said if "prompt" in key and isinstance(value, str)):
            words += prompt.split()
    return words


def new_folder(out: str | Path) -> Path:
    """The folder for results, made if need be.

    Raises:
        InputError: it is a file, or nothing can be written there.
    """
    folder = Path(out).expanduser()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unrounded(base: Base, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a LoRA the values that it has, where PEFT has rounded them to float8 as the layers below are."""
    start = f"{base.kind.network}."
    rounded = any(weight.dtype == torch.float8_e4m3fn for weight in base.unet.parameters())
    for key, value in tensors.items() if rounded else ():
        place, _, side = key.rpartition(".lora_")
        if key.startswith(start):
            layer: Any = base.unet.get_submodule(place.removeprefix(start))
            factor = (layer.lora_A if side == "A.weight" else layer.lora_B)[name]
            if factor.weight.dtype == torch.float8_e4m3fn:
                factor.weight = nn.Parameter(value.to(base.device, base.dtype), requires_grad=False)


@contextmanager
def applied(base: Base, loras: Sequence[str | Path], weights: Sequence[float] | None = None) -> Iterator[None]:
    """LoRA files put into the base's pipeline by diffusers itself, and taken out again.

    Diffusers gets the factors that our reader has read, with their strengths in them, and never a file or its header:
    it mistakes the strengths of some files, refuses the headers of newer versions, and hands what is in them, such as
    `lora_dropout`, on to PEFT. Learned tokens of the files hold as long.

    Raises:
        DuoLoRAError: a file cannot be read or does not fit the base.
        InputError: there are more or fewer weights than files.
    """
    weights = check_weights(weights, len(loras))
    shapes = base.lora_shapes()
    files = [Path(path).expanduser() for path in loras]
    adapters = [read_adapter(file) for file in files]
    for adapter, file in zip(adapters, files, strict=True):
        check_fits(adapter, shapes, file)
    pipeline = base.pipeline()
    try:
        names = [f"lora_{k}" for k in range(len(files))]
        for name, file, adapter in zip(names, files, adapters, strict=True):
            try:
                tensors = diffusers_tensors(uniform(adapter), torch.float32)
                pipeline.load_lora_weights(tensors, adapter_name=name)
                _unrounded(base, tensors, name)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                why = f"diffusers cannot put it on this base ({reason(error)[:200]})"
                raise BaseMismatch(f"{file}: {why}; name the base it was made for") from error
        if names:
            pipeline.set_adapters(names, weights)
        for network in (base.unet, *base.text_encoders):
            network.eval()
        with replaced(pipeline, embeddings_of(*adapters)):
            yield
    finally:
        if files:
            pipeline.unload_lora_weights()
