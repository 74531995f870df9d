"""Small stand-ins for ComfyUI's modules: folders that are real, patches that are remembered, a bar, a Stop button."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file


class Interrupted(Exception):
    """What ComfyUI raises where somebody has pressed Stop."""


class Comfy:
    """What the nodes find instead of ComfyUI, and what they did to it."""

    Interrupted = Interrupted

    def __init__(self, root: Path) -> None:
        self.root, self.bars, self.said, self.calls, self.stop_at = root, [], [], 0, None

    def files(self, kind: str) -> list[str]:
        folder = self.root / kind
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*") if file.is_file())

    def path(self, kind: str, name: str) -> str:
        if not (self.root / kind / name).exists():
            raise FileNotFoundError(f"Model in folder '{kind}' with filename '{name}' not found.")
        return str(self.root / kind / name)

    def throw(self) -> None:
        self.calls += 1
        if self.stop_at is not None and self.calls >= self.stop_at:
            raise Interrupted

    def modules(self) -> dict[str, object]:
        comfy = self

        class Bar:
            def __init__(self, total):
                self.seen = []
                comfy.bars.append(self)

            def update_absolute(self, value, total=None):
                self.seen.append((value, total))

        def load_lora_for_models(model, clip, lora, strength_model, strength_clip):
            return (*model, (lora, strength_model)), (*clip, (lora, strength_clip))

        tell = SimpleNamespace(send_progress_text=lambda text, node: self.said.append((node, text)))
        return {
            "comfy.sd": {"load_lora_for_models": load_lora_for_models},
            "comfy.utils": {
                "load_torch_file": lambda path, safe_load=False: load_file(path),
                "ProgressBar": Bar,
            },
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": self.throw,
                "unload_all_models": lambda: None,
                "soft_empty_cache": lambda: None,
                "get_torch_device": lambda: torch.device("cpu"),
            },
            "folder_paths": {
                "get_filename_list": self.files,
                "get_full_path_or_raise": self.path,
                "get_folder_paths": lambda kind: [str(self.root / kind)],
                "get_temp_directory": lambda: str(self.root / "temp"),
            },
            "server": {"PromptServer": SimpleNamespace(instance=tell)},
            "comfy": {},
        }


@pytest.fixture
def comfy(tmp_path, monkeypatch, loras) -> Comfy:
    """ComfyUI's folders with the LoRAs of the tiny base in them, and its modules where the nodes import them."""
    found = Comfy(tmp_path)
    for name, members in found.modules().items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("sd", "utils", "model_management"):
        setattr(sys.modules["comfy"], name, sys.modules[f"comfy.{name}"])
    for folder in ("loras", "checkpoints"):
        (tmp_path / folder).mkdir()
    for path in loras:
        (tmp_path / "loras" / path.name).write_bytes(path.read_bytes())
    return found


@pytest.fixture
def nodes(comfy, monkeypatch):
    """The node pack, imported anew beside the stand-ins."""
    for name in ("comfyui", "comfyui.nodes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield import_module("comfyui")
    for name in ("comfyui", "comfyui.nodes"):
        sys.modules.pop(name, None)
