"""Published encoders that are pickles, turned into safetensors; nothing in a pickle is ever executed.

A process of its own with limits on memory, time and what it writes reads the pickle by torch's `weights_only`, which
knows tensors, plain containers and CSD's options. What it wrote is then loaded as the encoder, key by key.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.metrics.encoders import load_embedder

SECONDS = 600
"""After which reading a pickle is given up."""
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
BESIDE = (
    "config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
"""What belongs to a folder in transformers' layout besides its weights."""


def convert(name: str, source: Path, out: Path) -> Path:
    """Write a published encoder as safetensors, and load it as a check; returns `out`.

    Args:
        name: dino, dinov2, clip or csd.
        source: CSD's file, or a folder in transformers' layout with `pytorch_model.bin`.
        out: a .safetensors file for CSD, else a new folder.

    Raises:
        DuoLoRAError: the pickle is not there, holds anything but tensors, or is another network; nothing is written.
    """
    folder = name != "csd"
    pickle = source / "pytorch_model.bin" if folder else source
    if not pickle.is_file() or pickle.suffix not in PICKLES:
        wanted = f"a folder with {pickle.name} and config.json" if folder else f"a file in {', '.join(PICKLES)}"
        raise InputError(f"{source}: expected {wanted} for {name}, found none")
    if out.exists() or out.suffix != ("" if folder else ".safetensors"):
        kind = "a new folder" if folder else "a new .safetensors file"
        raise InputError(f"{out}: expected the name of {kind}; give another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".convert-", dir=out.parent) as draft:
        made = Path(draft) / out.name
        if folder:
            made.mkdir()
            for file in filter(Path.is_file, (source / file for file in BESIDE)):
                shutil.copyfile(file, made / file.name)
        weights = made / "model.safetensors" if folder else made
        _apart(pickle, weights)
        (plain := Path(draft) / "plain").touch()
        shutil.copymode(plain, weights)  # safetensors makes it readable by its owner only
        try:
            load_embedder(name, made, "cpu")
        except DuoLoRAError as error:
            raise type(error)(str(error).replace(str(made), str(source))) from error
        made.rename(out)
    return out


def _apart(pickle: Path, out: Path) -> None:
    """Run `unpickle.py` in a process of its own; by its path, so that it loads nothing of this package."""
    child = [sys.executable, "-P", str(Path(__file__).with_name("unpickle.py")), str(pickle), str(out)]
    try:
        done = subprocess.run(child, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise FileRefused(f"{pickle}: not read in {SECONDS} s; get the published file again") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it took more memory or time than such a file needs"])[-1]
        raise FileRefused(f"{pickle}: expected weights and nothing else ({why[:300]}); get the published file again")
