"""The nodes: what they ask for and give back. What a merge is, and every check of it, is in `duolora`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

import duolora

CONNECTED = "of the model"
NONE = "none"
FOLDER = "duolora"
"""Inside the first folder for LoRAs: where merges are saved."""
STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}

Mark = tuple[str, int, int]
Graph = Any
"""ComfyUI's graph of the nodes that are executed, by number."""


class DuoLoRAMerge:
    """Merge two LoRA files into one by any of the methods, save it among the LoRAs, and apply it."""

    CATEGORY = "DuoLoRA"
    DESCRIPTION = (
        "Merge a content LoRA and a style LoRA into one LoRA file, and apply it. A merge that was made once is read "
        "from its file. To change strengths without training again, use DuoLoRA Reweight on that file."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "lora_name")
    OUTPUT_TOOLTIPS = ("With the merge applied.", "With the merge applied.", "The saved file, as LoRA loaders list it.")
    FUNCTION = "merge"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks for, and how."""
        images = {"tooltip": "Without any, the LoRA generates some from its prompt."}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Without the two LoRAs."}),
                "clip": ("CLIP",),
                "content_lora": (loras(), {"tooltip": "The LoRA of the subject."}),
                "style_lora": (loras(),),
                "method": (list(duolora.METHODS), {"default": "duolora", "tooltip": _methods_in_words()}),
                "content_strength": ("FLOAT", STRENGTH),
                "style_strength": ("FLOAT", STRENGTH),
                "steps": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "Of training; 0: as usual."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1, "control_after_generate": False}),
            },
            "optional": {
                "content_images": ("IMAGE", images),
                "style_images": ("IMAGE", images),
                "content_prompt": ("STRING", _prompt("content LoRA, such as: a sks dog.")),
                "style_prompt": ("STRING", _prompt("style LoRA, such as: a house in zwx style.")),
                "merged_prompt": ("STRING", _prompt("merge; empty: the content with the style's ending.", "")),
                "base": (
                    [CONNECTED, *folder_paths.get_filename_list("checkpoints"), *pipelines()],
                    {
                        "tooltip": "The checkpoint that masks are trained on; by default the one that the model is "
                        "from. For a transformer (FLUX, SD 3, Z-Image, Qwen-Image) a folder of models/diffusers."
                    },
                ),
            },
            "hidden": {"graph": "DYNPROMPT", "node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, content_lora: str, style_lora: str, **_: object) -> list[Mark]:
        """What the cache takes beside the inputs: other files under the same names."""
        return [mark(lora_path(name)) for name in (content_lora, style_lora)]

    def merge(
        self,
        model: Any,
        clip: Any,
        content_lora: str,
        style_lora: str,
        method: str,
        content_strength: float,
        style_strength: float,
        steps: int,
        seed: int,
        content_images: Tensor | None = None,
        style_images: Tensor | None = None,
        content_prompt: str = "",
        style_prompt: str = "",
        merged_prompt: str = "",
        base: str = CONNECTED,
        graph: Graph = None,
        node_id: str = "",
    ) -> dict[str, Any]:
        """The model and the text encoders with the merge applied, and the name of its file."""
        content, style = lora_path(content_lora), lora_path(style_lora)
        options = duolora.options_of(
            method, content_weight=content_strength, style_weight=style_strength, seed=seed,
            **({"steps": steps} if steps and duolora.METHODS[method].asks_network else {}),
        )  # fmt: skip
        checkpoint = base_path(base, graph, node_id) if options.asks_network else None
        asked = {"content_prompt": content_prompt, "style_prompt": style_prompt, "merged_prompt": merged_prompt}
        prompts = {name: text.strip() or None for name, text in asked.items()}
        images = {"content": content_images, "style": style_images}
        made_from = (
            *map(mark, (content, style, *([] if checkpoint is None else [checkpoint]))),
            method, options, prompts, [_hash(each) for each in images.values()], duolora.__version__,
        )  # fmt: skip
        key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]
        out = saved(f"{content.stem[:60]}-{style.stem[:60]}-{method}-{key}")
        if not out.is_file():
            with TemporaryDirectory() as folder, room_for(checkpoint, _teller(node_id)) as (loaded, bar):
                paths = [_written(each, Path(folder) / kind) for kind, each in images.items()]
                duolora.merge(content, style, out, method, loaded, *paths, **prompts, options=options, callback=bar)
        name = str(out.relative_to(lora_folder()))
        return {"ui": {"text": [name]}, "result": (*applied(model, clip, _tensors(out), 1.0), name)}


class DuoLoRAReweight:
    """Apply a merge with other strengths of its content part and its style part; nothing is trained."""

    CATEGORY = "DuoLoRA"
    DESCRIPTION = (
        "Apply a file that DuoLoRA merged, with its content part and its style part at strengths of their own."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "lora_name")
    OUTPUT_TOOLTIPS = ("", "", "The saved file, if one is saved; else the file as it was.")
    FUNCTION = "reweight"

    def __init__(self) -> None:
        """The parts of the last file are kept, so that moving a slider reads nothing."""
        self._kept: tuple[Mark, list[dict[str, Tensor]]] | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks for, and how."""
        slider = STRENGTH | {"min": 0.0, "max": 2.0, "display": "slider"}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Without the merge."}),
                "clip": ("CLIP",),
                "lora_name": (loras(), {"tooltip": "A merge, as DuoLoRA wrote it."}),
                "content_strength": ("FLOAT", slider),
                "style_strength": ("FLOAT", slider),
                "save": ("BOOLEAN", {"default": False, "tooltip": "Write a LoRA file with these strengths, too."}),
            },
            "optional": {"merged": ("STRING", {"forceInput": True, "tooltip": "A file's name from DuoLoRA Merge."})},
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: object) -> Mark:
        """What the cache takes beside the inputs: another file under the same name."""
        return mark(lora_path(lora_name))

    def reweight(
        self,
        model: Any,
        clip: Any,
        lora_name: str,
        content_strength: float,
        style_strength: float,
        save: bool,
        merged: str | None = None,
    ) -> tuple[Any, Any, str]:
        """The model and the text encoders with the parts of a merge applied, and the name of the file."""
        name = merged or lora_name
        path = lora_path(name)
        for part, strength in zip(self._parts(path), (content_strength, style_strength), strict=True):
            model, clip = applied(model, clip, part, strength)
        if save:
            out = saved(f"{path.stem}-content{content_strength:g}-style{style_strength:g}")
            duolora.convert(path, out, content_weight=content_strength, style_weight=style_strength)
            name = str(out.relative_to(lora_folder()))
        return model, clip, name

    def _parts(self, path: Path) -> list[dict[str, Tensor]]:
        """The content part and the style part, as tensors of LoRAs."""
        if self._kept is None or self._kept[0] != mark(path):
            out = temporary(path, ".safetensors")
            self._kept = mark(path), [_tensors(part) for part in duolora.convert(path, out, "split", "float32").paths]
        return self._kept[1]


class DuoLoRAInspect:
    """Show what is in a LoRA file: base, ranks and energy by block, its parts, and what it shares with another."""

    CATEGORY = "DuoLoRA"
    DESCRIPTION = "What is in a LoRA file: base, dialect, rank, trigger words, energy by block; and a plot of it."
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("text", "image")
    OUTPUT_TOOLTIPS = ("For Preview as Text.", "One row for each module, sorted by block: strengths of its directions.")
    FUNCTION = "inspect"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks for, and how."""
        return {
            "required": {"lora_name": (loras(),)},
            "optional": {
                "other": ([NONE, *loras()], {"tooltip": "A file to compare it with, such as a source of a merge."}),
                "merged": ("STRING", {"forceInput": True, "tooltip": "A file's name from DuoLoRA Merge."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str, other: str = NONE, **_: object) -> list[Mark]:
        """What the cache takes beside the inputs: other files under the same names."""
        return [mark(lora_path(name)) for name in (lora_name, other) if name != NONE]

    def inspect(self, lora_name: str, other: str = NONE, merged: str | None = None) -> dict[str, Any]:
        """The facts as text, and the plot."""
        from duolora.cli.files import printed

        path = lora_path(merged or lora_name)
        plot = temporary(path, ".png")
        text = printed(duolora.inspect(path, None if other == NONE else lora_path(other), plot))
        with Image.open(plot) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
        shown = {"filename": plot.name, "subfolder": "", "type": "temp"}
        return {"ui": {"images": [shown], "text": [text]}, "result": (text, pixels[None])}


class Bar:
    """Tells ComfyUI's bar how far the training of a merge is."""

    previews = 0

    def __init__(self, say: Callable[[str], None]) -> None:
        """The bar is that of the node in execution; `say` writes a line below it."""
        self._bar, self._say = comfy.utils.ProgressBar(1), say

    def losses(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """So many steps are done, of so many."""
        self._bar.update_absolute(done, of)
        self._say(f"Training the masks: {done} of {of}, loss {terms['loss']:.3g}")

    def masks(self, done: int, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Masks are not shown."""

    def preview(self, done: int, images: Tensor) -> None:
        """There are none."""


@contextmanager
def room_for(checkpoint: Path | None, say: Callable[[str], None]) -> Iterator["tuple[duolora.Base | None, Bar]"]:
    """The base and a bar for a merge, where gradients are possible, which ComfyUI rules out for its nodes.

    ComfyUI's models leave the GPU first, the base leaves it in the end, and each call of its UNet ends the work if
    somebody has interrupted.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if checkpoint is None:
            yield None, Bar(say)
            return
        say(f"Loading {checkpoint.name}")
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        base = duolora.load_base(checkpoint, comfy.model_management.get_torch_device())
        base.keeps_encoders = False
        base.unet.register_forward_pre_hook(
            lambda *_: comfy.model_management.throw_exception_if_processing_interrupted()
        )
        say("Calibrating on images")
        try:
            yield base, Bar(say)
        finally:
            base.release_encoders()
            base.unet.to("cpu")
            comfy.model_management.soft_empty_cache()


def loras() -> list[str]:
    """The LoRA files that can be read; pickles never are."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_path(name: str) -> Path:
    """Where the LoRA of this name is."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def lora_folder() -> Path:
    """The first of ComfyUI's folders for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def saved(stem: str) -> Path:
    """Where a LoRA of this name is saved."""
    return lora_folder() / FOLDER / f"{stem}.safetensors"


def temporary(path: Path, suffix: str) -> Path:
    """Where something made of a file is put, for as long as ComfyUI runs."""
    name = hashlib.sha256(repr((path, mark(path))).encode()).hexdigest()[:16]
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{path.stem[:60]}-{name}{suffix}"


def mark(path: Path) -> Mark:
    """What tells a file from another one under its name, without reading it."""
    facts = path.stat()
    return path.name, facts.st_size, facts.st_mtime_ns


def pipelines() -> dict[str, Path]:
    """The folders in diffusers' layout, where ComfyUI has them, by the names that are shown."""
    folders = (folder for place in folder_paths.get_folder_paths("diffusers") for folder in Path(place).glob("*"))
    return {f"{path.name} (diffusers)": path for path in sorted(folders) if (path / "model_index.json").is_file()}


def base_path(base: str, graph: Graph, node_id: str) -> Path:
    """The checkpoint or folder of this name, or what the model of a node is from, by the links of the graph.

    Raises:
        InputError: no node above names a checkpoint.
    """
    if folder := pipelines().get(base):
        return folder
    inputs = {"ckpt_name": base} if base != CONNECTED else graph.get_node(node_id)["inputs"]
    while not isinstance(name := inputs.get("ckpt_name"), str):
        above = inputs.get("model")
        if not isinstance(above, list):
            raise duolora.InputError(
                "base: this method finds its masks on the checkpoint itself, but no node above `model` names one; "
                "choose it under `base`"
            )
        inputs = graph.get_node(above[0])["inputs"]
    return Path(folder_paths.get_full_path_or_raise("checkpoints", name))


def applied(model: Any, clip: Any, lora: Mapping[str, Tensor], strength: float) -> tuple[Any, Any]:
    """Model and text encoders with a LoRA, by ComfyUI's own patches."""
    return comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)


def _tensors(path: Path) -> dict[str, Tensor]:
    return comfy.utils.load_torch_file(str(path), safe_load=True)


def _teller(node_id: str) -> Callable[[str], None]:
    """Writes a line below the node; nowhere without a server."""
    server = getattr(PromptServer, "instance", None)
    return lambda text: None if server is None else server.send_progress_text(text, node_id)


def _hash(images: Tensor | None) -> str | None:
    return None if images is None else hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()


def _written(images: Tensor | None, folder: Path) -> Path | None:
    """A batch of ComfyUI's images (n, h, w, 3) in [0, 1] as files, which is what `merge` takes."""
    if images is None:
        return None
    folder.mkdir()
    for k, pixels in enumerate((images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()):
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    return folder


def _methods_in_words() -> str:
    from duolora.merging.options import METHOD_HELP

    return "\n".join(f"{name}: {said}" for name, said in METHOD_HELP.items())


def _prompt(what: str, default: str = " Empty: what its file says.") -> dict[str, Any]:
    return {"default": "", "tooltip": f"The trigger prompt of the {what}{default}"}
