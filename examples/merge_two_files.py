"""Two LoRA files into one without a base model: `python examples/merge_two_files.py CONTENT STYLE OUT`.

Names and shapes of the modules say all that a plain method needs, so that this works for any SDXL LoRAs in seconds.
"""

import sys

import duolora


def main(content: str, style: str, out: str) -> duolora.Merged:
    """A weighted sum that every program reads, with a little less of the style."""
    options = duolora.options_of("naive", style_weight=0.8)
    return duolora.merge(content, style, out, "naive", options=options, format="kohya")


if __name__ == "__main__":
    print(main(*sys.argv[1:4]).path)
