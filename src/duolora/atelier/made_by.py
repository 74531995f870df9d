"""How the weights of Atelier were made, in `provenance.json` beside them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from duolora.atelier.data import renderer_hash
from duolora.errors import InputError
from duolora.provenance import file_hash, versions

STAGES = ("vae", "base", "judges")
NAME = "provenance.json"


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights in a folder, by its path there."""
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*.safetensors"))}


def vae_hash(folder: Path) -> str:
    """SHA-256 of the weights of the VAE in a folder of runs."""
    return file_hash(folder / "vae" / "diffusion_pytorch_model.safetensors")


def write_provenance(folder: Path, stage: str, recipe: Any, start_from: dict[str, str] | None) -> None:
    """Note how a stage was trained: its recipe with its seed, what it started from, how much it saw, what drew it."""
    facts = {
        "recipe": asdict(recipe),
        "start_from": start_from,
        "updates": recipe.updates,
        "pictures_seen": recipe.updates * recipe.batch,
        "renderer": renderer_hash(),
        "versions": versions(),
    }
    (folder / f"{stage}.{NAME}").write_text(json.dumps(facts, indent=1))


def noted(folder: Path) -> dict[str, Any]:
    """What the stages in `folder` noted, by stage.

    Raises:
        InputError: a stage has noted nothing, because it is not finished.
    """
    missing = [stage for stage in STAGES if not (folder / f"{stage}.{NAME}").exists()]
    if missing:
        raise InputError(
            f"{folder}: expected finished stages {', '.join(STAGES)}, found no {missing[0]}; train it first"
        )
    return {stage: json.loads((folder / f"{stage}.{NAME}").read_text()) for stage in STAGES}
