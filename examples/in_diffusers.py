"""A merged file in plain diffusers, without this package: `python examples/in_diffusers.py MODEL LORA PROMPT OUT`."""

import sys

import torch
from diffusers import StableDiffusionXLPipeline


def main(model: str, lora: str, prompt: str, out: str, steps: int = 25) -> None:
    """Generate one image at the LoRA's full strength."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(model)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.load_lora_weights(lora)
    pipeline(prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(0)).images[0].save(out)


if __name__ == "__main__":
    main(*sys.argv[1:5])
