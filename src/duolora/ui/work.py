"""What the page does, without the page: train, merge, generate, compare and export, telling how far it is."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from duolora import progress
from duolora.api.convert import convert
from duolora.api.generate import applied
from duolora.api.merge import merge, options_of
from duolora.api.train import default_options, train
from duolora.errors import BaseMismatch, DuoLoRAError, FileRefused, InputError
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import read_adapter, read_metadata
from duolora.lora.write.atomic import part_paths
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.merging.options import MergeOptions
from duolora.model.base import Base, load_base
from duolora.model.images import as_image, load_images
from duolora.model.sample import sample_images
from duolora.options import idle
from duolora.training.options import TrainOptions, check_training

FORMATS = ("kohya", "diffusers", "uniform", "split", "masks")
PREVIEWS = {"train": 50, "merge": 25}
"""A preview after so many steps."""
COUNT = 4
"""Images of a finished merge."""
EVERY = 0.5
"""Seconds from one word of how far the work is to the next; each brings the newest previews."""
SIDES = {"content": "subject", "style": "style"}
ENLARGED = 256
"""Pixels that an image has at least, as it is shown."""
RECORD = "made.json"


@dataclass(frozen=True)
class Side:
    """What a person brings for the subject or for the style: images and a prompt, or a LoRA file."""

    images: tuple[Path, ...] = ()
    prompt: str = ""
    lora: Path | None = None


@dataclass(frozen=True)
class Asked:
    """What is to be made."""

    content: Side
    style: Side
    base: str = "atelier"
    method: str = "duolora"
    train_steps: int | None = None
    merge_steps: int | None = None
    seed: int = 0

    def side(self, kind: str) -> Side:
        """Content or style."""
        return self.content if kind == "content" else self.style

    def options(self, method: str) -> MergeOptions:
        """Those of a merge by this method or, to compare with, by another one."""
        options = options_of(method, seed=self.seed)
        steps = self.merge_steps if not idle(options, ["steps"]) else None
        return options if steps is None else replace(options, steps=steps)

    def training(self, kind: str) -> TrainOptions:
        """Those of the LoRA of one side."""
        options = replace(default_options(self.base, kind), seed=self.seed)
        return options if self.train_steps is None else replace(options, steps=self.train_steps)


@dataclass(frozen=True)
class Wanted:
    """Images to generate: their prompt, the strengths of the merge's two parts, how many, and the first seed."""

    prompt: str
    content: float = 1.0
    style: float = 1.0
    count: int = COUNT
    seed: int = 0


@dataclass(frozen=True)
class News:
    """How far the work is."""

    stage: str
    done: int = 0
    of: int = 0
    losses: tuple[float, ...] = ()
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Made:
    """A finished merge in a folder of its own, which images can be generated with, and which can be exported."""

    folder: Path
    asked: Asked
    prompt: str
    text: str

    def merged(self, method: str = "") -> Path:
        """The LoRA by its own method, or by another one to compare with."""
        return self.folder / f"{method or self.asked.method}.safetensors"

    def images(self, kind: str) -> list[Path]:
        """The images of one side ("content", "style"), or those that were generated in the end ("generated")."""
        return sorted((self.folder / kind).iterdir()) if (self.folder / kind).is_dir() else []

    def saved(self) -> "Made":
        """Itself, written down so that it can be opened again."""
        asked = {each.name: getattr(self.asked, each.name) for each in fields(Asked)}
        for kind in SIDES:
            side = self.asked.side(kind)
            asked[kind] = {"prompt": side.prompt, "lora": side.lora is not None}
        record = {"prompt": self.prompt, "text": self.text, "asked": asked}
        (self.folder / RECORD).write_text(json.dumps(record, indent=1), "utf-8")
        return self


def opened(folder: Path) -> Made:
    """A merge that was finished some time ago.

    Raises:
        InputError: there is none in that folder.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        made = Made(folder, Asked(Side(), Side()), str(record["prompt"]), str(record["text"]))
        sides = {}
        for kind in SIDES:
            said, lora = record["asked"].pop(kind), folder / f"{kind}.safetensors"
            sides[kind] = Side(tuple(made.images(kind)), str(said["prompt"]), lora if said["lora"] else None)
        return replace(made, asked=Asked(sides["content"], sides["style"], **record["asked"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder.name}: there is no finished merge of that number") from None


Tell = Callable[[News], None]


class Feed:
    """A callback that passes everything on as news, and stops the work when it is told to."""

    def __init__(self, stage: str, tell: Tell, previews: int = 0) -> None:
        """News are told under the name of the stage; enter it to have all steps told."""
        self.previews, self.tell, self.now, self.late = previews, tell, News(stage), 0.0
        tell(self.now)

    def __enter__(self) -> "Feed":
        """Listen to all work."""
        progress.tell(self.step)
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no more."""
        progress.tell(None)

    def step(self, title: str, done: int, of: int) -> None:
        """A step of the stage's own work, or of something on its way, such as class images."""
        if self.now.stage.startswith(title):
            self.now = replace(self.now, done=done, of=of)
        if time.monotonic() >= self.late:
            self.late = time.monotonic() + EVERY
            other = "" if self.now.stage.startswith(title) else f": {title.lower()}"
            self.tell(replace(self.now, stage=f"{self.now.stage}{other}", done=done, of=of))

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The loss, added to those before it."""
        self._say(replace(self.now, done=done, of=of, losses=(*self.now.losses, terms["loss"])))

    def masks(self, done: int, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Masks are not shown."""

    def preview(self, done: int, images: Tensor) -> None:
        """The newest images."""
        self._say(replace(self.now, done=done, images=tuple(map(shown, images.clamp(-1, 1)))))

    def _say(self, news: News) -> None:
        self.now = news
        self.tell(news)


def shown(image: Tensor) -> Image.Image:
    """An image as people see it: small ones enlarged without smoothing."""
    found = as_image(image)
    times = max(1, ENLARGED // max(found.size))
    return found.resize((found.width * times, found.height * times), Image.Resampling.NEAREST)


def prompt_in(lora: str | Path) -> str:
    """The trigger prompt that a LoRA file carries, by its header alone; empty where it has none.

    Raises:
        FileRefused: it is no LoRA.
    """
    return str(read_metadata(Path(lora)).get("prompt") or "")


def check_asked(asked: Asked) -> None:
    """Refuse, before any work, what no merge can be made of.

    Raises:
        DuoLoRAError: something is missing or cannot be used.
    """
    for kind, name in SIDES.items():
        side = asked.side(kind)
        if not side.lora and not side.images:
            raise InputError(f"the {name}: expected images or a LoRA file, got neither; drop some in")
        if not side.lora and not side.prompt:
            raise InputError(f"the {name}: expected words for what its images show, got none; fill them in")
        if not side.lora:
            check_training(asked.training(kind))
    options = options_of(asked.method)
    if asked.merge_steps is not None and idle(options, ["steps"]):
        raise InputError(f"steps of the masks: {asked.method} trains none; leave the field empty")


class Studio:
    """The work of the page; the last base stays loaded."""

    def __init__(self) -> None:
        """No base is loaded yet."""
        self._base: tuple[str, Base] | None = None

    def base(self, name: str, tell: Tell) -> Base:
        """The base, loaded if it is another one than last time."""
        if self._base is None or self._base[0] != name:
            self._base = None
            tell(News(f"Loading {name}"))
            self._base = (name, load_base(name))
        return self._base[1]

    def make(self, asked: Asked, folder: Path, tell: Tell) -> Made:
        """Train what is missing, merge, and generate images, all into a folder of its own.

        Raises:
            DuoLoRAError: something that was given cannot be used.
        """
        check_asked(asked)
        tell(News("Reading what was brought"))
        for kind in SIDES:
            _brought(asked.side(kind), kind, folder)
        for kind, name in SIDES.items():
            if not asked.side(kind).lora:
                base = self.base(asked.base, tell)
                with Feed(f"Training on the {name}", tell, PREVIEWS["train"]) as feed:
                    train(
                        folder / kind, asked.side(kind).prompt, folder / f"{kind}.safetensors", base,
                        asked.training(kind), progress=False, callback=feed, kind=kind,
                    )  # fmt: skip
        made = self._merged(Made(folder, asked, "", ""), asked.method, tell)
        if made.prompt:
            try:
                for k, image in enumerate(self.generate(made, Wanted(made.prompt), tell)):
                    (folder / "generated").mkdir(exist_ok=True)
                    image.save(folder / "generated" / f"{k}.png")
            except (BaseMismatch, FileRefused, InputError) as error:
                made = replace(made, text=f"{made.text}; no images: {worded(error, asked, folder)}")
        return made.saved()

    def _merged(self, made: Made, method: str, tell: Tell) -> Made:
        """The two LoRAs merged by one method, which needs no base where the two say enough."""
        asked, path, options = made.asked, made.merged(method), made.asked.options(method)
        given = all(asked.side(kind).lora for kind in SIDES)
        base = None if given and not options.asks_network else self.base(asked.base, tell)
        images = {kind: made.folder / kind if made.images(kind) else None for kind in SIDES}
        with Feed(f"Merging by {method}", tell, PREVIEWS["merge"]) as feed:
            done = merge(
                made.folder / "content.safetensors", made.folder / "style.safetensors", path, method, base,
                images["content"], images["style"], content_prompt=asked.content.prompt or None,
                style_prompt=asked.style.prompt or None, options=options, progress=False, callback=feed,
            )  # fmt: skip
        merged = read_adapter(path)
        if CONTENT_RANKS in merged.metadata:
            masks = {"content": done.content_masks, "style": done.style_masks}
            write_masks(path.with_suffix(".masks.safetensors"), MaskFile(masks, merged.metadata, merged.notes))
        text = f"{done.verification.modules} modules, {done.verification.size / 1000:.0f} kB, {done.seconds:.1f} s; "
        text += f"read back, ΔW is off by at most {done.verification.error:.0e} of its size"
        return replace(made, prompt=str(merged.metadata.get("prompt") or ""), text=text)

    def generate(self, made: Made, wanted: Wanted, tell: Tell, method: str = "") -> list[Image.Image]:
        """Images with other weights on the two parts of the merge, by its own or another method; nothing is trained.

        Raises:
            DuoLoRAError: the prompt is empty, or the merge has no parts that could be reweighted.
        """
        if not wanted.prompt.strip():
            raise InputError("the prompt: expected words for what to generate, got none")
        merged, base = made.merged(method), self.base(made.asked.base, tell)
        strengths, asked = [(merged, 1.0)], (wanted.content, wanted.style)
        if asked != (1.0, 1.0):
            parts = zip(_parts_of(merged, method or made.asked.method), asked, strict=True)
            strengths = [(path, weight) for path, weight in parts if path.exists()]
        feed = Feed(f"Generating by {method}" if method else "Generating", tell)
        with feed, applied(base, [path for path, _ in strengths], [weight for _, weight in strengths]):
            seeds = range(wanted.seed, wanted.seed + wanted.count)
            found = sample_images(base, [wanted.prompt] * wanted.count, seeds)
        return [shown(image) for image in found.clamp(-1, 1)]

    def compare(self, made: Made, methods: Sequence[str], wanted: Wanted, tell: Tell) -> dict[str, list[Image.Image]]:
        """The same prompt, seeds and weights by every method; a merge that is there is not made again.

        Raises:
            DuoLoRAError: no method was chosen, or one of the merges cannot be made.
        """
        if not methods:
            raise InputError("methods: expected at least one to compare, got none; tick some")
        found = {}
        for method in methods:
            if not made.merged(method).exists():
                self._merged(made, method, tell)
            found[method] = self.generate(made, wanted, tell, method)
        return found

    def export(self, made: Made, format: str, content: float, style: float, tell: Tell) -> list[Path]:
        """The merge as files in any format, with these weights on its parts; their name says what is in them.

        Raises:
            DuoLoRAError: there is no such format, or the merge cannot be written in it.
        """
        if format not in FORMATS:
            raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
        tell(News("Writing the file"))
        merged, method = made.merged(), made.asked.method
        out = made.folder / "files" / f"{file_stem(made, content, style)}-{format}.safetensors"
        if format == "masks":
            masks = merged.with_suffix(".masks.safetensors")
            if not masks.exists():
                raise InputError(f"masks: expected a method with masks, {method} has none; choose another format")
            out = out.with_stem(f"{file_stem(made, 1.0, 1.0)}-masks")  # without the strengths, which masks don't carry
            out.parent.mkdir(exist_ok=True)
            shutil.copyfile(masks, out)
            return [out]
        if (content, style) != (1.0, 1.0):
            _check_parts(merged, method)
        done = convert(merged, out, format, content_weight=content, style_weight=style)
        return [path for path in done.paths if path.exists()]


def file_stem(made: Made, content: float, style: float) -> str:
    """A name that says what is in a file: the prompt, the method, and the strengths where they are not 1."""
    words = re.sub(r"[^\w]+", "-", made.prompt or f"merge {made.folder.name}").strip("-")[:60]
    strengths = "" if (content, style) == (1.0, 1.0) else f"-{content:g}-{style:g}"
    return f"{words}-{made.asked.method}{strengths}"


def _brought(side: Side, kind: str, folder: Path) -> None:
    """Copy what was brought into the folder, and see whether it can be used."""
    for k, image in enumerate(side.images):
        (folder / kind).mkdir(exist_ok=True)
        shutil.copyfile(image, folder / kind / f"{k:02d}-{image.name[-100:]}")
    if side.images:
        load_images(folder / kind, 64)
    if side.lora:
        shutil.copyfile(side.lora, folder / f"{kind}.safetensors")
        read_adapter(folder / f"{kind}.safetensors")


def _check_parts(merged: Path, method: str) -> None:
    if CONTENT_RANKS not in read_adapter(merged).metadata:
        raise InputError(
            f"strengths: {method} mixes the two LoRAs so that neither can be reweighted alone; set both to 1"
        )


def _parts_of(merged: Path, method: str) -> tuple[Path, Path]:
    whole = merged.with_suffix(".parts.safetensors")
    paths = part_paths(whole)
    if not any(path.exists() for path in paths):
        _check_parts(merged, method)
        convert(merged, whole, "split", "float32")
    return paths


def worded(error: DuoLoRAError, asked: Asked, folder: Path) -> str:
    """An error in the words of the page: files by the names that the person knows, no options of the command line."""
    text = str(error)
    for kind, name in SIDES.items():
        if lora := asked.side(kind).lora:
            text = text.replace(str(folder / f"{kind}.safetensors"), f"the {name}'s file {lora.name}")
            text = text.replace(str(lora), f"the {name}'s file {lora.name}")
        text = re.sub(rf"{re.escape(str(folder / kind))}/\d\d-", f"the {name}'s image ", text)
        text = re.sub(rf"{re.escape(str(folder / kind))}(?![\w.])", f"the {name}'s images", text)
    text = text.replace(f"{folder}/", "").replace("with --base", "under Base").replace("by --base", "under Base")
    return re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", " "), text)
