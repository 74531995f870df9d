"""Put together what was trained: `python -m recipes.atelier.pack --help`."""

import json
from pathlib import Path
from shutil import copyfile
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors import safe_open
from transformers import CLIPTokenizer

from duolora.atelier.captions import varied_captions
from duolora.provenance import file_hash, versions
from recipes.atelier.architecture import new_scheduler
from recipes.atelier.base import TextToImage
from recipes.atelier.data import renderer_hash


def pipeline_of(base: Path, vae: Path) -> StableDiffusionXLPipeline:
    """The averaged networks of a run and a VAE as one SDXL pipeline."""
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    parts = TextToImage(tokenizer)
    with safe_open(base / "average.safetensors", "pt") as file:
        parts.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(vae / "vae"),
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=parts.unet,
        scheduler=new_scheduler(),
        add_watermarker=False,
    )


DEFAULTS = {
    "training": {"rank": 16, "steps": 250, "batch": 4, "lr": 1e-3, "caption_dropout": 0.1},
    "style_training": {"flip": True},
    "guidance": 3.0,
    "dtype": "float32",
}
"""What suits LoRAs on the base; captions of class images are added."""


def save(pipeline: StableDiffusionXLPipeline, out: Path) -> None:
    """Write the pipeline folder in float16, with configs that load as float32."""
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    training = DEFAULTS["training"] | {"class_prompts": varied_captions(24)}  # type: ignore[operator]
    (out / "duolora.json").write_text(json.dumps(DEFAULTS | {"training": training}, indent=1) + "\n")
    for name in ("text_encoder", "text_encoder_2"):  # transformers would load what is stored as float16 as that
        config = out / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2))
    config = out / "vae" / "config.json"
    known = json.loads(config.read_text()) | {"_name_or_path": ""}  # nobody needs to know where it was
    config.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def main(
    base: Annotated[Path, typer.Option(help="The folder that base.py wrote.")],
    text: Annotated[Path, typer.Option(help="The folder that text.py wrote.")],
    vae: Annotated[Path, typer.Option(help="The folder that vae.py wrote.")],
    classifier: Annotated[Path, typer.Option(help="The folder that classifier.py wrote.")],
    style: Annotated[Path, typer.Option(help="The folder that style_encoder.py wrote.")],
    out: Annotated[Path, typer.Option(help="The folder of weights to write.")],
) -> None:
    """Write the pipeline, the classifier, the style encoder and how they were made."""
    save(pipeline_of(base, vae), out / "base")
    copyfile(classifier / "classifier.safetensors", out / "classifier.safetensors")
    copyfile(style / "style_encoder.safetensors", out / "style_encoder.safetensors")
    stages = {
        "vae": vae / "vae.json",
        "text": text / "text.json",
        "base": base / "recipe.json",
        "classifier": classifier / "classifier.json",
        "style_encoder": style / "style_encoder.json",
    }
    facts: dict[str, object] = {stage: json.loads(path.read_text()) for stage, path in stages.items()}
    facts |= {"renderer": renderer_hash(), "versions": versions()}
    facts["weights"] = {str(p.relative_to(out)): file_hash(p) for p in sorted(out.rglob("*.safetensors"))}
    (out / "provenance.json").write_text(json.dumps(facts, indent=1) + "\n")
    typer.echo(f"Packed: {out}")


if __name__ == "__main__":
    typer.run(main)
