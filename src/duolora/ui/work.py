"""What the page does, without the page: train, merge, draw, compare and export, telling how far it is."""

import math
import pickle
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image
from torch import Tensor

from duolora.api.convert import convert
from duolora.api.generate import applied
from duolora.api.merge import merge, options_of
from duolora.api.train import default_options, train
from duolora.errors import DuoLoRAError, InputError
from duolora.lora.parts import CONTENT_RANKS
from duolora.lora.read.file import read_adapter
from duolora.lora.write.atomic import half_paths
from duolora.merging.inputs import Masks
from duolora.merging.mask_file import MaskFile, write_masks
from duolora.model.base import Base, load_base
from duolora.model.images import as_image
from duolora.model.sample import draw

FORMATS = ("kohya", "diffusers", "uniform", "split", "masks")
PREVIEWS = {"train": 50, "merge": 25}
"""A preview after so many updates."""
STOPPED = "stopped; nothing was written"


class Stopped(DuoLoRAError):
    """Somebody pressed Stop."""


@dataclass(frozen=True)
class Side:
    """What a person brings for the thing or for the look: pictures and a prompt, or a LoRA file."""

    pictures: tuple[Path, ...] = ()
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


@dataclass(frozen=True)
class News:
    """How far the work is."""

    stage: str
    done: int = 0
    of: int = 0
    losses: tuple[float, ...] = ()
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, eq=False)
class Made:
    """A merge that can be drawn with, weighed and exported."""

    asked: Asked
    folder: Path
    loras: Mapping[str, Path]
    images: Mapping[str, Path | None]
    merged: Path
    prompt: str
    masks: Mapping[str, Masks]
    text: str


Tell = Callable[[News], None]


class Feed:
    """A watcher that passes everything on as news, and stops the work when it is told to."""

    def __init__(self, stage: str, previews: int, tell: Tell) -> None:
        """News are told under the name of the stage."""
        self.previews, self.tell, self.now = previews, tell, News(stage)
        tell(self.now)

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The loss, added to those before it."""
        self._say(replace(self.now, done=done, of=of, losses=(*self.now.losses, terms["loss"])))

    def masks(self, done: int, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Masks are not shown."""

    def preview(self, done: int, pictures: Tensor) -> None:
        """The newest pictures."""
        self._say(replace(self.now, done=done, pictures=tuple(map(shown, pictures.clamp(-1, 1)))))

    def _say(self, news: News) -> None:
        self.now = news
        self.tell(news)


def shown(picture: Tensor, least: int = 256) -> Image.Image:
    """A picture as people see it: small ones enlarged without smoothing."""
    image = as_image(picture)
    times = max(1, least // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def prompt_in(lora: str | Path) -> str:
    """The trigger prompt that a LoRA file carries; empty where it has none.

    Raises:
        FileRefused: it is no LoRA.
    """
    return str(read_adapter(Path(lora)).recipe.get("prompt") or "")


class Studio:
    """The work of one page, in one folder; the last base stays loaded."""

    def __init__(self, folder: Path) -> None:
        """Files go into numbered folders inside this one."""
        self.folder = folder
        self._base: tuple[str, Base] | None = None

    def base(self, name: str) -> Base:
        """The base, loaded if it is another one than last time."""
        if self._base is None or self._base[0] != name:
            self._base = None
            self._base = (name, load_base(name))
        return self._base[1]

    def make(self, asked: Asked, tell: Tell) -> Made:
        """Train what is missing, and merge.

        Raises:
            DuoLoRAError: something that was given cannot be used.
        """
        for kind, side in (("subject", asked.content), ("style", asked.style)):
            if not side.lora and not side.pictures:
                raise InputError(f"the {kind}: expected images or a LoRA file, got neither; drop some in")
        options_of(asked.method)
        tell(News(f"Loading {asked.base}"))
        base, folder = self.base(asked.base), self._new_folder()
        loras, images = {}, {}
        for kind, side in (("content", asked.content), ("style", asked.style)):
            loras[kind], images[kind] = self._side(kind, side, asked, base, folder, tell)
        made = Made(asked, folder, loras, images, folder / "merged.safetensors", "", {}, "")
        return self._merged(made, asked.method, tell)

    def _new_folder(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in self.folder.iterdir() if p.name.isdigit()), default=0)
        (self.folder / f"{number:03d}").mkdir()
        return self.folder / f"{number:03d}"

    def _side(
        self, kind: str, side: Side, asked: Asked, base: Base, folder: Path, tell: Tell
    ) -> tuple[Path, Path | None]:
        """The LoRA of one side, trained if need be, and the folder of its pictures."""
        lora, images = folder / f"{kind}.safetensors", None
        if side.pictures:
            images = folder / kind
            images.mkdir()
            for k, picture in enumerate(side.pictures):
                shutil.copyfile(picture, images / f"{k:02d}{picture.suffix.lower()}")
        if side.lora:
            shutil.copyfile(side.lora, lora)
            read_adapter(lora)
        elif images is not None:
            what = "the subject" if kind == "content" else "the style"
            options = replace(default_options(asked.base, kind), seed=asked.seed)
            options = replace(options, steps=asked.train_steps or options.steps)
            feed = Feed(f"Training on {what}", PREVIEWS["train"], tell)
            train(images, side.prompt, lora, base, options, progress=False, watch=feed)
        return lora, images

    def _merged(self, made: Made, method: str, tell: Tell) -> Made:
        """The two LoRAs merged by one method."""
        asked = made.asked
        path = made.folder / ("merged.safetensors" if method == asked.method else f"{method}.safetensors")
        options = options_of(method, seed=asked.seed)
        if options.masks != "none" and asked.merge_steps is not None:
            options = replace(options, steps=asked.merge_steps)
        feed = Feed(f"Merging by {method}", PREVIEWS["merge"], tell)
        done = merge(
            made.loras["content"], made.loras["style"], path, method, self.base(asked.base), made.images["content"],
            made.images["style"], asked.content.prompt or None, asked.style.prompt or None, None, options,
            progress=False, watch=feed,
        )  # fmt: skip
        prompt = str(read_adapter(path).recipe.get("prompt") or "")
        text = f"{done.proof.modules} modules, {done.proof.size / 1000:.0f} kB, {done.seconds:.1f} s; "
        text += f"read back, ΔW is off by at most {done.proof.error:.0e} of its size"
        masks = {"content": done.content_masks, "style": done.style_masks}
        return replace(made, merged=path, prompt=prompt, masks=masks, text=text)

    def draw(
        self, made: Made, prompt: str, content: float = 1.0, style: float = 1.0, count: int = 4, seed: int = 0
    ) -> list[Image.Image]:
        """Pictures with other weights on the two halves; nothing is learnt again.

        Raises:
            DuoLoRAError: the prompt is empty, or the merge has no halves that could be weighed.
        """
        if not prompt.strip():
            raise InputError("the prompt: expected words for what to generate, got none")
        if count < 1:
            raise InputError(f"expected at least one image, got {count}")
        weighed = [(made.merged, 1.0)]
        if (content, style) != (1.0, 1.0):
            weighed = [(p, w) for p, w in zip(self._halves(made), (content, style), strict=True) if p.exists()]
        base = self.base(made.asked.base)
        with applied(base, [path for path, _ in weighed], [weight for _, weight in weighed]):
            drawn = draw(base, [prompt] * count, range(seed, seed + count))
        return [shown(picture) for picture in drawn.clamp(-1, 1)]

    def _halves(self, made: Made) -> tuple[Path, Path]:
        whole = made.merged.with_suffix(".halves.safetensors")
        paths = half_paths(whole)
        if not any(path.exists() for path in paths):
            convert(made.merged, whole, "split", "float32")
        return paths

    def compare(
        self, made: Made, methods: Sequence[str], prompt: str, count: int, seed: int, tell: Tell
    ) -> dict[str, list[Image.Image]]:
        """The same prompt and seeds by every method; a merge that is there is not made again.

        Raises:
            DuoLoRAError: no method was chosen, or one of the merges cannot be made.
        """
        if not methods:
            raise InputError("methods: expected at least one to compare, got none; tick some")
        found = {}
        for method in methods:
            path = made.folder / f"{method}.safetensors"
            if method == made.asked.method:
                other = made
            elif path.exists():
                other = replace(made, merged=path)
            else:
                other = self._merged(made, method, tell)
            tell(News(f"Generating by {method}"))
            found[method] = self.draw(other, prompt, count=count, seed=seed)
        return found

    def export(self, made: Made, format: str, content: float = 1.0, style: float = 1.0) -> list[Path]:
        """The merge as files in any format, with these weights on its halves.

        Raises:
            DuoLoRAError: there is no such format, or the merge cannot be written in it.
        """
        if format not in FORMATS:
            raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
        out = made.folder / f"duolora-{format}.safetensors"
        if format == "masks":
            merged = read_adapter(made.merged)
            if CONTENT_RANKS not in merged.recipe:
                raise InputError(f"masks: expected a method with masks, {made.asked.method} has none; choose another")
            write_masks(out, MaskFile(dict(made.masks), merged.recipe, merged.notes))
            return [out]
        done = convert(made.merged, out, format, content_weight=content, style_weight=style)
        return [path for path in done.paths if path.exists()]


class Worker:
    """A studio in a process of its own: whatever it does, and even if it hangs, it can be stopped."""

    def __init__(self, studio: Callable[[Path], Any], folder: Path, patience: float = 5.0) -> None:
        """`studio` makes the studio there; `patience` is how long, in seconds, it may take to stop by itself."""
        self.studio, self.folder, self.patience = studio, folder, patience
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Begin the process, if there is none."""
        if self._process is None or not self._process.is_alive():
            context = get_context("spawn")
            self._pipe, other = context.Pipe()
            self._halt = context.Event()
            given = (self.studio, self.folder, other, self._halt)
            self._process = context.Process(target=_serve, args=given, daemon=True)
            self._process.start()
            other.close()

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def run(self, stop: Event, name: str, *given: object) -> Generator[News, None, Any]:
        """The news of one of the studio's methods, as it comes, until `stop` is set; returns what the method returns.

        Raises:
            DuoLoRAError: the method does, or it was stopped, or its process has died.
        """
        stop.clear()
        self.start()
        self._halt.clear()
        self._pipe.send_bytes(pickle.dumps((name, given)))
        late, ended = math.inf, False
        try:
            while time.monotonic() < late:
                if stop.is_set() and late == math.inf:
                    self._halt.set()
                    late = time.monotonic() + self.patience
                if not self._pipe.poll(0.1):
                    continue
                try:
                    kind, value = pickle.loads(self._pipe.recv_bytes())
                except (EOFError, OSError) as error:
                    raise DuoLoRAError("the work has ended by itself; its memory may have been full") from error
                ended = kind != "news"
                if kind == "failed":
                    raise value
                if kind == "done":
                    return value
                yield value
            raise Stopped(STOPPED)
        finally:
            if not ended:
                self.end()

    def result(self, stop: Event, name: str, *given: object) -> Any:
        """What a method returns that has no news (see `run`)."""
        work = self.run(stop, name, *given)
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value


def _serve(studio: Callable[[Path], Any], folder: Path, pipe: Any, halt: Any) -> None:
    """What the process of a `Worker` does: one method after another, until the page is gone."""
    made = studio(folder)

    def tell(news: News) -> None:
        if halt.is_set():
            raise Stopped(STOPPED)
        pipe.send_bytes(pickle.dumps(("news", news)))

    while True:
        try:
            name, given = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            more = (tell,) if name in ("make", "compare") else ()
            said = ("done", getattr(made, name)(*given, *more))
        except DuoLoRAError as error:
            said = ("failed", error)
        except Exception as error:  # told to the person, whatever it is
            said = ("failed", DuoLoRAError(f"{type(error).__name__}: {error}"))
        pipe.send_bytes(pickle.dumps(said))
