"""Turn a content LoRA and a style LoRA into one ordinary LoRA file that draws that thing in that look.

The verbs of the command line are functions here: `train`, `merge`, `generate`, `evaluate`, `compose` and
`compose_at_once`, `convert`, `inspect`; with them come their options, their results and their errors. Nothing heavy is
imported before one of them is asked for.
"""

from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duolora.api.compose import Composed, compose, compose_at_once, one_shot_options
    from duolora.api.convert import Converted, convert
    from duolora.api.evaluate import Evaluation, Score, evaluate
    from duolora.api.generate import generate
    from duolora.api.inspect import inspect
    from duolora.api.merge import Merged, merge, options_of
    from duolora.api.train import Trained, default_options, train
    from duolora.errors import BaseMismatch, DuoLoRAError, FileRefused, InputError
    from duolora.lora.verify import Proof
    from duolora.merging.options import METHODS, MergeOptions
    from duolora.model.base import Base, BaseChoice, load_base
    from duolora.training.callbacks import Watcher
    from duolora.training.options import TrainOptions

    __version__: str

_EXPORTS = {
    "duolora.api.compose": ("Composed", "compose", "compose_at_once", "one_shot_options"),
    "duolora.api.convert": ("Converted", "convert"),
    "duolora.api.evaluate": ("Evaluation", "Score", "evaluate"),
    "duolora.api.generate": ("generate",),
    "duolora.api.inspect": ("inspect",),
    "duolora.api.merge": ("Merged", "merge", "options_of"),
    "duolora.api.train": ("Trained", "default_options", "train"),
    "duolora.errors": ("BaseMismatch", "DuoLoRAError", "FileRefused", "InputError"),
    "duolora.lora.verify": ("Proof",),
    "duolora.merging.options": ("METHODS", "MergeOptions"),
    "duolora.model.base": ("Base", "BaseChoice", "load_base"),
    "duolora.training.callbacks": ("Watcher",),
    "duolora.training.options": ("TrainOptions",),
}
"""The same for a running program; a test compares the two."""
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "METHODS",
    "Base",
    "BaseChoice",
    "BaseMismatch",
    "Composed",
    "Converted",
    "DuoLoRAError",
    "Evaluation",
    "FileRefused",
    "InputError",
    "MergeOptions",
    "Merged",
    "Proof",
    "Score",
    "TrainOptions",
    "Trained",
    "Watcher",
    "__version__",
    "compose",
    "compose_at_once",
    "convert",
    "default_options",
    "evaluate",
    "generate",
    "inspect",
    "load_base",
    "merge",
    "one_shot_options",
    "options_of",
    "train",
]


if not TYPE_CHECKING:  # to a type checker, any other name is a mistake

    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first asked for."""
        if name == "__version__":
            return import_module("importlib.metadata").version("duolora")
        if name not in _HOMES:
            raise AttributeError(f"module 'duolora' has no attribute {name!r}")
        for library in (
            "TRANSFORMERS",
            "DIFFUSERS",
        ):  # they warn as they are imported
            environ.setdefault(f"{library}_VERBOSITY", "error")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        """The public names, for completion."""
        return sorted({*globals(), *__all__})
