"""Real examples, with which the help of every command ends."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("duolora demo --out demo", "duolora demo --out another --pair 3 --seed 1"),
    "train": (
        'duolora train --images photos/ --prompt "a sks teapot in flat style" --out teapot.safetensors',
        'duolora train --images flat.png --prompt "a house in zwx style" --flip --out flat.safetensors',
    ),
    "merge": (
        "duolora merge teapot.safetensors flat.safetensors --method naive --style-weight 0.8 --out both.safetensors",
        "duolora merge --content teapot.safetensors --style flat.safetensors --out fast.safetensors --steps 50",
        "duolora merge --set help",
    ),
    "generate": (
        'duolora generate --prompt "a sks teapot in zwx style" --lora both.safetensors --out images',
        'duolora generate --prompt "a red cat" --num 16 --guidance 5 --out images',
    ),
    "convert": (
        "duolora convert both.safetensors --out both-diffusers.safetensors --format diffusers",
        "duolora convert both.safetensors --out softer.safetensors --style-weight 0.7",
    ),
    "compose": (
        "duolora compose one.safetensors two.safetensors --out three.safetensors",
        "duolora compose one.safetensors two.safetensors --weight 0.7 --weight 0.3 --out three.safetensors",
        "duolora compose cat.safetensors dog.safetensors flat.safetensors --method oneshot --out all.safetensors",
    ),
    "inspect": (
        "duolora inspect both.safetensors",
        "duolora inspect both.safetensors --other teapot.safetensors --plot both.png",
    ),
    "evaluate": (
        "duolora evaluate --generated images --content photos --style flat.png",
        'duolora evaluate --generated images --content photos --prompt "a red cat" --metrics paper --json',
    ),
    "choose": (
        "duolora choose naive.safetensors ziplora.safetensors duolora.safetensors --content photos --style flat.png "
        '--prompt "a sks teapot in zwx style" --out best.safetensors',
    ),
    "refine": (
        "duolora refine naive.safetensors ziplora.safetensors duolora.safetensors --content photos --style flat.png "
        '--prompt "a sks teapot in zwx style" --out refined.safetensors',
    ),
    "checkpoints convert": (
        "duolora checkpoints convert csd CSD.pth --out csd.safetensors",
        "duolora checkpoints convert clip clip-vit-base-patch32 --out clip",
    ),
    "ui": ("duolora ui --out my-work --port 7861",),
    "datasets check": ("duolora datasets check dreambooth/dataset",),
    "datasets pairs": ("duolora datasets pairs --contents dataset --styles styles --count 20 --out pairs.json",),
    "bench table": ("duolora bench {name} --pairs 1", "duolora bench {name} --pairs 4 --workers 2 --out runs"),
    "bench photos": (
        "duolora bench {name} --pairs 1",
        "duolora bench {name} --pairs 4 --workers 2 --out runs",
        "duolora bench {name} --photos pairs.json --contents dreambooth --styles styledrop --base sdxl/ "
        "--checkpoint csd=csd.safetensors",
    ),
    "bench paper": ("duolora bench paper --pairs 1", "duolora bench paper --out runs --tuned runs/tuning/tuned.json"),
    "bench rerun": ("duolora bench rerun runs/table1 --out again",),
    "bench figure3": (
        "duolora bench figure3 --out runs",
        'duolora bench figure3 --base sdxl/ --prompt "A cat on a chair in the style of impressionism" '
        "--block down_blocks.2 --block mid_block --block up_blocks.0",
        "duolora bench figure3 --base flux/ --prompts prompts.txt --count 8 --checkpoint csd=csd.safetensors",
    ),
    "bench report": ("duolora bench report runs --out report.html",),
    "bench study make": ("duolora bench study make runs --out study",),
    "bench study score": ("duolora bench study score answers/ --key study/key.json",),
    "bench speed": ("duolora bench speed --base sdxl-small --method duolora",),
    "bench growth": ("duolora bench growth --base sdxl-small --repeats 1",),
}


def examples(command: str, **names: str) -> str:
    """The last lines of a command's help; the sign in front keeps click from filling them."""
    lines = "\n".join(f"  {line.format(**names)}" for line in EXAMPLES[command])
    return f"\b\nExamples:\n{lines}"
