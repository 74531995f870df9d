"""Strength as PEFT's LoraConfig states it: in a file's header (`lora_adapter_metadata`) or in adapter_config.json.

scale = alpha / r, or alpha / √r with rsLoRA; the alpha is that of the first pattern that fits the module's name, else
`lora_alpha`. Ranks are those of the factors. Nothing else in a config changes ΔW: `lora_dropout`, `target_modules` and
the fields of newer versions are not read.
"""

import math
import re
import reprlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from duolora.errors import FileRefused
from duolora.lora.read.header import json_object

ADAPTER_METADATA = "lora_adapter_metadata"
NETWORK = "network"
"""The component that is no text encoder: `unet` or `transformer` in a header."""
_ALPHA = 8
"""The alpha of LoraConfig when it is not told one."""
_KNOWN = re.compile(r"(?:[^\\({]|\\[^A-Za-z0-9]|\\[dw]|\((?:\?:|(?!\?)))*")
"""The patterns that trainers write: letters, `.`, `\\.`, `\\d`, `\\w`, classes, groups, `|`, `*`, `+`, `?`, `^`, `$`.

They are matched by `regex`, whose time can be bounded: for some, Python's own engine takes longer than anybody waits.
"""
_LONGEST = 200_000
"""Letters in all patterns of one config; a pattern with the name of every layer of SDXL has under 100,000."""
_SECONDS = 10.0
"""Of the processor for all names of one file, and of the clock for one match. A pattern for each layer of SDXL takes
two in all; some patterns would never end."""


class PatternRefused(ValueError):
    """A pattern that is none, or not one of those that trainers write."""


class Matcher:
    """Finds the first pattern, in the config's order, that a name fits as PEFT fits it: to its end, at any depth."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile the patterns.

        Raises:
            PatternRefused: a pattern is damaged or of a kind that trainers do not write, or they are too long together.
        """
        patterns = list(patterns)
        if sum(map(len, patterns)) > _LONGEST:
            raise PatternRefused(f"more than {_LONGEST} letters")
        self._patterns, self._left, self._found = list[Any](), _SECONDS, dict[str, int | None]()
        for text in patterns:
            try:
                if not _KNOWN.fullmatch(text):
                    raise PatternRefused("signs that trainers do not write")
                re.compile(text)  # which PEFT asks, and which lets it close no bracket of ours
                self._patterns.append(regex.compile(rf"(?:.*\.)?(?:{text})$"))
            except (PatternRefused, re.error, regex.error) as error:
                raise PatternRefused(f"{text[:80]!r} has {error}") from error
            except RecursionError:
                raise PatternRefused(f"{text[:80]!r} has too many groups within each other") from None

    def first(self, name: str) -> int | None:
        """The number of the first pattern that fits the name; None if none does.

        Raises:
            PatternRefused: all names together take longer than any patterns that trainers write.
        """
        if name not in self._found:
            begun, found = time.thread_time(), None
            try:
                for number, pattern in enumerate(self._patterns):
                    if pattern.match(name, timeout=_SECONDS):
                        found = number
                        break
                    if time.thread_time() - begun > self._left:
                        raise TimeoutError
            except TimeoutError:
                raise PatternRefused("too many ways to fit a name") from None
            self._left, self._found[name] = self._left - (time.thread_time() - begun), found
        return self._found[name]


@dataclass(frozen=True)
class PeftConfig:
    """The strengths that one LoraConfig gives."""

    alpha: float
    patterns: Matcher
    alphas: tuple[float, ...]
    """One for each pattern."""
    rslora: bool
    where: str

    def scale(self, names: Iterable[str], rank: int) -> float:
        """The strength of a module, which may go by several names.

        Raises:
            FileRefused: the patterns take longer than any that a trainer writes.
        """
        try:
            fits = [number for name in names if (number := self.patterns.first(name)) is not None]
        except PatternRefused as error:
            raise _no_pattern(self.where, error) from error
        alpha = self.alphas[min(fits)] if fits else self.alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def peft_configs(metadata: Mapping[str, str], file: str) -> dict[str, PeftConfig]:
    """The LoraConfig of each component (`NETWORK`, `text_encoder`, `text_encoder_2`) that the header has one for.

    Raises:
        FileRefused: it is damaged, or of another kind of adapter than LoRA.
    """
    found = json_object(metadata, ADAPTER_METADATA, file)
    components: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        component, _, argument = key.partition(".")
        if component not in ("unet", "transformer", "text_encoder", "text_encoder_2"):
            argument = key
        component = component if component in ("text_encoder", "text_encoder_2") else NETWORK
        components.setdefault(component, {})[argument] = value
    return {component: _config(arguments, file) for component, arguments in components.items()}


def _config(arguments: Mapping[str, Any], file: str) -> PeftConfig:
    where = f"{file}: {ADAPTER_METADATA}"
    if arguments.get("use_dora"):
        raise FileRefused(f"{where} makes it a DoRA; expected a plain LoRA; convert it to one first")
    if (kind := arguments.get("peft_type", "LORA")) != "LORA":
        raise FileRefused(
            f"{where}: peft_type: expected LORA, got {reprlib.repr(kind)}; convert it to a plain LoRA first"
        )
    patterns = arguments.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        found = reprlib.repr(patterns)
        raise FileRefused(f"{where}: alpha_pattern: expected alphas under names, got {found}; download the file again")
    alphas = [arguments.get("lora_alpha", _ALPHA), *patterns.values()]
    for alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
            raise FileRefused(
                f"{where}: expected finite numbers as alphas, got {reprlib.repr(alpha)}; download it again"
            )
    try:
        matcher = Matcher(patterns)
    except PatternRefused as error:
        raise _no_pattern(where, error) from error
    alpha, *others = map(float, alphas)
    return PeftConfig(alpha, matcher, tuple(others), bool(arguments.get("use_rslora")), where)


def _no_pattern(where: str, error: PatternRefused) -> FileRefused:
    return FileRefused(
        f"{where}: alpha_pattern: {error}; expected names, (a|b), .* and \\d+; write names in their place"
    )
