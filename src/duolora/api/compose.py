"""Several LoRAs in one file: their weighted sum, exact, by concatenation (Sec. 3.5), or merged with masks.

The paper names it as its own limitation that it merges two (Sec. 5); masks in closed form have no such limit.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Unpack, get_args

from duolora.errors import InputError, Notice
from duolora.lora.adapter import Adapter, check_fill, embeddings_of
from duolora.lora.families import common
from duolora.lora.on_demand import OnDemand, in_float32, outlines
from duolora.lora.read.file import check_fits, read_adapter, source_hash
from duolora.lora.read.notes import carried
from duolora.lora.verify import Verification
from duolora.merging.closed_form import Part, one_shot
from duolora.merging.export import Output, checked_output, export
from duolora.merging.fold import Kind, folded_sides, unmasked_of
from duolora.merging.inputs import Loras, latents_of, parted, roles_of, tell_no_map
from duolora.merging.options import MergeOptions, options_of
from duolora.model.base import Base, BaseChoice, opened, path_of
from duolora.model.prompts import replaced
from duolora.options import Format, Written, check, check_weights, word
from duolora.paper.lowrank import LowRank, concatenate
from duolora.progress import through
from duolora.provenance import versions


@dataclass(frozen=True)
class Composed:
    """The file, how its strength was verified, and what the composed files hold besides LoRAs."""

    path: Path
    verification: Verification
    left_out: tuple[str, ...] = ()
    """Parts that are not carried over, such as bundled embeddings."""


def compose(
    loras: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None, **written: Unpack[Written]
) -> Composed:
    """Write Σ αᵢ ΔWᵢ of the LoRA files to `out`; the rank of a module is the sum of its ranks.

    Args:
        loras: two or more LoRA files, such as merges of several contents with one style.
        out: the .safetensors file to write.
        weights: αᵢ of each file; by default 1. Sec. 3.5 takes the mean of merges with one style, 1/n.
        format: kohya (by default), diffusers or uniform.
        dtype: float16 (by default), bfloat16 or float32.
        overwrite: whether a file that is there already is replaced, as by default; an input never is.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    paths = [Path(path).expanduser() for path in loras]
    if len(paths) < 2:
        raise InputError(f"expected at least two LoRA files to compose, got {len(paths)}")
    chosen = check_weights(weights, len(paths))
    to = checked_output(out, written, Format, paths)
    adapters = [read_adapter(path, as_stored=True) for path in through(paths, "Reading")]
    families = common(zip(paths, (adapter.families for adapter in adapters), strict=True))
    check_fill(zip(paths, adapters, strict=True))
    if weights is None and all(adapter.metadata.get("made_by") == "duolora merge" for adapter in adapters):
        share = f"{1 / len(paths):.3g}"
        warnings.warn(
            f"these are merges, added up whole; for their mean, as in Sec. 3.5, give each the weight {share}",
            Notice, stacklevel=2,
        )  # fmt: skip
    sources = [
        {"file": source_hash(path), "name": path.name, "weight": weight, "prompt": adapter.metadata.get("prompt")}
        for path, weight, adapter in zip(paths, chosen, adapters, strict=True)
    ]
    metadata: dict[str, object] = {
        "made_by": "duolora compose", "architecture": " or ".join(families), "sources": sources, "versions": versions(),
        **_left_out(adapters),
    }  # fmt: skip
    return _written(to, composed(adapters, chosen, metadata))


def _left_out(adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """What the adapters hold besides LoRAs, as the metadata say it, if there is anything."""
    found = list(dict.fromkeys(part for adapter in adapters for part in adapter.left_out))
    return {"left_out": found} if found else {}


def composed(adapters: Sequence[Adapter], weights: Sequence[float], metadata: dict[str, object]) -> Adapter:
    """The weighted sum; a module that only some cover is the sum of those.

    Raises:
        BaseMismatch: two adapters are for different families.
        InputError: they have one module in different shapes.
    """
    found: dict[str, LowRank] = {}
    for adapter in adapters:
        for name, lora in outlines(adapter.modules).items():
            first = found.setdefault(name, lora)
            if (first.d_out, first.d_in, first.kernel) != (lora.d_out, lora.d_in, lora.kernel):
                shapes = f"{(first.d_out, first.d_in)} and {(lora.d_out, lora.d_in)}"
                raise InputError(f"{name}: expected one shape in all files, found {shapes}; they are for other bases")
    sources = [(adapter.modules, weight) for adapter, weight in zip(adapters, weights, strict=True)]
    sketched = [(outlines(modules), weight) for modules, weight in sources]
    modules = OnDemand({name: _sum(sketched, name) for name in found}, lambda name: _sum(sources, name))
    families = common((f"LoRA {k}", adapter.families) for k, adapter in enumerate(adapters, 1))
    return Adapter(modules, metadata, notes=_notes(adapters), families=families, embeddings=embeddings_of(*adapters))


def _sum(sources: Sequence[tuple[Mapping[str, LowRank], float]], name: str) -> LowRank:
    """One module's weighted sum, in float32."""
    loras = [(in_float32(modules[name]), weight) for modules, weight in sources if name in modules]
    return concatenate([replace(lora, scale=weight * lora.scale) for lora, weight in loras])


def _notes(adapters: Sequence[Adapter]) -> dict[str, str]:
    return carried({f"LoRA {k}": adapter for k, adapter in enumerate(adapters, 1)})


@dataclass(frozen=True, eq=False)
class Taught:
    """A LoRA of a merge, what brings it out, what it is for, and its images; None generates some with it."""

    adapter: Adapter
    prompt: str
    kind: Kind = "content"
    images: str | Path | None = None


class ComposeKeywords(Written, total=False):
    """What `compose_at_once` takes by keyword only; it says what each is."""

    merged_prompt: str | None
    progress: bool


def compose_at_once(
    loras: Sequence[str | Path],
    out: str | Path,
    base: str | BaseChoice | Base = "atelier",
    prompts: Sequence[str] = (),
    images: Sequence[str | Path | None] = (),
    kinds: Sequence[str] = (),
    options: MergeOptions | None = None,
    **given: Unpack[ComposeKeywords],
) -> Composed:
    """Merge any number of LoRAs at once, each with masks in closed form (`merge` with the method oneshot, for more).

    Args:
        loras: two or more LoRA files.
        out: the .safetensors file to write.
        base: a name, path or hub id, a choice of how to run it, or a loaded base.
        prompts: the trigger prompt of each LoRA; by default the prompts in the files' metadata.
        images: images of each, a file or folder; by default each LoRA generates some from its prompt.
        kinds: what each is for, content or style; they then lead in the modules of that role. Without them no LoRA
            leads anywhere.
        merged_prompt: the prompt for all together, for the file's metadata; by default all prompts in a row.
        options: everything else; by default `one_shot_options`.
        format: kohya (by default), diffusers or uniform.
        dtype: float16 (by default), bfloat16 or float32.
        progress: show bars on stderr, as by default.
        overwrite: whether a file that is there already is replaced, as by default; an input never is.

    Raises:
        DuoLoRAError: an input cannot be used; nothing is written then.
    """
    paths = [Path(path).expanduser() for path in loras]
    if len(paths) < 2:
        raise InputError(f"expected at least two LoRA files to merge, got {len(paths)}")
    check(options := options or one_shot_options(kinds))
    for name, each in (("prompts", prompts), ("images", images), ("kinds", kinds)):
        if each and len(each) != len(paths):
            raise InputError(f"{name}: expected {len(paths)}, one for each file, got {len(each)}")
    to = checked_output(out, given, Format, [*paths, path_of(base)])
    adapters = [read_adapter(path) for path in paths]
    taught = _taught(paths, adapters, prompts, kinds, images)
    loaded = opened(base, once=True)
    for path, adapter in zip(paths, adapters, strict=True):
        check_fits(adapter, loaded.lora_shapes(), path)
    together = given.get("merged_prompt") or ", ".join(each.prompt for each in taught)
    with replaced(loaded.parts, embeddings_of(*adapters)):
        modules = _merged(loaded, taught, options, given.get("progress", True))
    metadata: dict[str, object] = {
        "made_by": "duolora compose", "method": "oneshot", "base": loaded.name, "prompt": together,
        "sources": [
            {"file": source_hash(path), "name": path.name, "prompt": each.prompt, "kind": each.kind}
            for path, each in zip(paths, taught, strict=True)
        ],
        "options": asdict(options), "versions": versions(), **_left_out(adapters),
    }  # fmt: skip
    return _written(to, Adapter(modules, metadata, notes=_notes(adapters), embeddings=embeddings_of(*adapters)))


def _merged(base: Base, taught: Sequence[Taught], options: MergeOptions, progress: bool) -> Loras:
    """One LoRA of all; modules outside the attention layers go by the policy `options.unmasked`.

    `kind` says where a LoRA leads, for `off_role` and the layer prior, and which of `content_weight` and
    `style_weight` is its own.

    Raises:
        InputError: an option does not fit, such as masks on another dimension than the rank.
    """
    if options.masks != "rank":
        raise InputError(f"masks: many LoRAs at once need 'rank', got {options.masks!r}")
    architecture = base.architecture
    sides = [parted(architecture.shapes, each.adapter, options) for each in taught]
    generated = [(loras, each.prompt, each.images) for each, (loras, _) in zip(taught, sides, strict=True)]
    latents = latents_of(base, generated, options, progress)
    parts = [Part(loras, each.kind, x, each.prompt) for each, (loras, _), x in zip(taught, sides, latents, strict=True)]
    tell_no_map(architecture, options)
    found_roles = roles_of(architecture, options)
    masks = one_shot(base, parts, found_roles, options, progress)
    folding = [(loras, m, each.kind) for each, (loras, _), m in zip(taught, sides, masks, strict=True)]
    covered = [name for name in found_roles if any(name in loras for loras, _ in sides)]
    others = [(unmasked, each.kind) for each, (_, unmasked) in zip(taught, sides, strict=True)]
    return {**folded_sides(covered, folding, options), **unmasked_of(others, options)}


def _written(to: Output, whole: Adapter) -> Composed:
    left_out = whole.metadata.get("left_out")
    done = export(to.path, whole, to.format, to.dtype)
    return Composed(to.path, done.verification, tuple(left_out) if isinstance(left_out, list) else ())


def one_shot_options(kinds: Sequence[str], **changes: object) -> MergeOptions:
    """The options of the method oneshot; where nobody said what each LoRA is for, every teacher counts everywhere."""
    plain: dict[str, object] = {} if kinds else {"off_role": 1.0}
    return options_of("oneshot", **(plain | changes))


def _taught(
    paths: Sequence[Path],
    adapters: Sequence[Adapter],
    prompts: Sequence[str],
    kinds: Sequence[str],
    images: Sequence[str | Path | None],
) -> list[Taught]:
    """Each LoRA with its trigger prompt, as given or from its file's metadata, what it is for, and its images."""
    count, found = len(paths), []
    given = (prompts or [""] * count, kinds or ["content"] * count, images or [None] * count)
    for path, adapter, prompt, kind, shown in zip(paths, adapters, *given, strict=True):
        said = prompt or adapter.metadata.get("prompt")
        if not isinstance(said, str) or not said.strip():
            raise InputError(f"{path}: its file names no prompt or trigger word; give one for each file with --prompt")
        found.append(Taught(adapter, said, word("kinds", kind, get_args(Kind)), shown))
    return found
