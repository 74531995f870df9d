"""From images of a subject and of a style to images of both together: `python examples/train_and_merge.py FOLDER`.

Runs on Atelier, the base in the box, in some minutes on two cores. For SDXL, give `base=` the id of a model.
"""

import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

import duolora
from duolora.atelier.pairs import rendered, sample_pair


def main(out: Path, steps: int = 400) -> list[Path]:
    """Train (for some steps, the masks for 100 at most), merge and generate in the folder `out`; returns the images."""
    pair = sample_pair(1)
    (out / "subject").mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(rendered(pair.content_scenes())):
        Image.fromarray(pixels).save(out / "subject" / f"{number}.png")
    Image.fromarray(rendered([pair.style_scene()])[0]).save(out / "style.png")

    for kind, images, prompt in (
        ("content", out / "subject", pair.content_prompt),
        ("style", out / "style.png", pair.style_prompt),
    ):
        options = replace(duolora.default_options("atelier", kind), steps=steps)
        duolora.train(images, prompt, out / f"{kind}.safetensors", options=options)
    merged = duolora.merge(
        out / "content.safetensors",
        out / "style.safetensors",
        out / "both.safetensors",
        base="atelier",
        options=duolora.options_of("duolora", steps=min(100, steps)),
    )
    return duolora.generate(pair.merged_prompt, out / "images", loras=[merged.path])


if __name__ == "__main__":
    print(*main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"), *map(int, sys.argv[2:])), sep="\n")
