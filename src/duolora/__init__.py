"""Turn a content LoRA and a style LoRA into one ordinary LoRA file that draws that thing in that look.

The verbs of the command line are functions here: `train`, `merge`, `generate`, `evaluate`, `compose` and
`compose_at_once`, `convert`, `inspect`. Nothing heavy is imported before one of them is asked for.
"""

from importlib import import_module
from typing import Any

_VERBS = {
    "train": "duolora.verbs.train",
    "merge": "duolora.verbs.merge",
    "generate": "duolora.verbs.generate",
    "evaluate": "duolora.evaluation.evaluate",
    "compose": "duolora.verbs.compose",
    "compose_at_once": "duolora.verbs.compose_at_once",
    "convert": "duolora.verbs.convert",
    "inspect": "duolora.verbs.inspect",
    "load_base": "duolora.networks.bases",
}
__all__ = ["compose", "compose_at_once", "convert", "evaluate", "generate", "inspect", "load_base", "merge", "train"]


def __getattr__(name: str) -> Any:
    """A verb, imported when it is first asked for."""
    if name not in _VERBS:
        raise AttributeError(f"module 'duolora' has no attribute {name!r}")
    return getattr(import_module(_VERBS[name]), name)
