"""Turn a content LoRA and a style LoRA into one ordinary LoRA file that generates that subject in that style.

The verbs of the command line are functions here: `train`, `merge`, `generate`, `evaluate`, `choose`, `refine`,
`compose` and `compose_at_once`, `convert`, `inspect`; with them come their options, their results and their errors.
Nothing heavy is imported before one of them is asked for.
"""

from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duolora.api.choose import Candidate as Candidate, Choice as Choice, choose as choose
    from duolora.api.compose import (
        Composed as Composed,
        compose as compose,
        compose_at_once as compose_at_once,
        one_shot_options as one_shot_options,
    )
    from duolora.api.convert import Converted as Converted, convert as convert
    from duolora.api.evaluate import Evaluation as Evaluation, Score as Score, evaluate as evaluate
    from duolora.api.generate import generate as generate
    from duolora.api.inspect import inspect as inspect
    from duolora.api.merge import Merged as Merged, merge as merge, options_of as options_of
    from duolora.api.refine import Refined as Refined, refine as refine
    from duolora.api.train import Trained as Trained, default_options as default_options, train as train
    from duolora.errors import (
        BaseMismatch as BaseMismatch,
        DuoLoRAError as DuoLoRAError,
        FileRefused as FileRefused,
        InputError as InputError,
    )
    from duolora.lora.verify import Verification as Verification
    from duolora.merging.options import METHODS as METHODS, MergeOptions as MergeOptions
    from duolora.model.base import Base as Base, BaseChoice as BaseChoice, load_base as load_base
    from duolora.training.callbacks import Callback as Callback
    from duolora.training.options import TrainOptions as TrainOptions

    __version__: str

_EXPORTS = {
    "duolora.api.choose": ("Candidate", "Choice", "choose"),
    "duolora.api.compose": ("Composed", "compose", "compose_at_once", "one_shot_options"),
    "duolora.api.convert": ("Converted", "convert"),
    "duolora.api.evaluate": ("Evaluation", "Score", "evaluate"),
    "duolora.api.generate": ("generate",),
    "duolora.api.inspect": ("inspect",),
    "duolora.api.merge": ("Merged", "merge", "options_of"),
    "duolora.api.refine": ("Refined", "refine"),
    "duolora.api.train": ("Trained", "default_options", "train"),
    "duolora.errors": ("BaseMismatch", "DuoLoRAError", "FileRefused", "InputError"),
    "duolora.lora.verify": ("Verification",),
    "duolora.merging.options": ("METHODS", "MergeOptions"),
    "duolora.model.base": ("Base", "BaseChoice", "load_base"),
    "duolora.training.callbacks": ("Callback",),
    "duolora.training.options": ("TrainOptions",),
}
"""The same for a running program; a test compares the two."""
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]


if not TYPE_CHECKING:  # to a type checker, any other name is a mistake

    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first asked for."""
        if name == "__version__":
            return import_module("importlib.metadata").version("duolora")
        if name not in _HOMES:
            raise AttributeError(f"module 'duolora' has no attribute {name!r}")
        for library in ("TRANSFORMERS", "DIFFUSERS"):  # they warn as they are imported
            environ.setdefault(f"{library}_VERBOSITY", "error")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        """The public names alone, for completion."""
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
