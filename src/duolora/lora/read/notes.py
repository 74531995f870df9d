"""What people wrote about a LoRA in its header: author, licence, title, tags, description, trigger words.

`modelspec.…` is Stability's Model Metadata Standard, `ss_…` is kohya's trainer, `ssmd_…` are A1111's notes.
"""

import re
import warnings
from collections.abc import Iterable, Mapping

from duolora.errors import Notice
from duolora.lora.adapter import Adapter

_PREFIXES = ("modelspec.", "ss_", "ssmd_")
UNTITLED = "LoRA"
"""The title of what has none; the standard asks for one."""
_COMPUTED = {
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.hash_sha256",
    "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    "ss_network_dropout", "ss_output_name", "ss_v2",
}  # fmt: skip
"""Facts about the tensors of one file, which are said anew of every other one."""
_LONGEST = 1_000_000
"""Letters of one note; the longest are previews and the counts of tags in big datasets."""
_MOST = 3_000_000
"""Letters of all notes, so that a header stays one that everybody reads."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FORBIDS = {
    "merging": re.compile(r"no[- ](?:merg|deriv|remix)|\bnd\b", re.IGNORECASE),
    "selling": re.compile(r"non[- ]?commercial|\bnc\b", re.IGNORECASE),
}
"""How licences say what may not be done: CC BY-ND, CC BY-NC-SA 4.0, "no derivatives", "no merges"."""


def notes_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """The notes in a header, without control characters, and without what is computed of each file."""
    found, letters = {}, 0
    for key, text in sorted(metadata.items()):
        if not key.startswith(_PREFIXES) or key in _COMPUTED or not text.strip() or len(text) > _LONGEST:
            continue
        if key == "modelspec.title" and text in (metadata.get("ss_output_name"), UNTITLED):
            continue  # the name that the file had, or none
        letters += len(key) + len(text)
        if letters <= _MOST:
            found[plain(key)] = plain(text)
    return found


def notes_of_merge(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The notes of a merge, from those of its sources by kind: it names them all, and everything they were given under.

    Authors, licences and tags are listed; what describes one source only, such as its dataset or image, stays there.
    """
    found = {}
    for key in ("modelspec.author", "modelspec.license"):
        if said := _distinct(notes.get(key) for notes in sources.values()):
            found[key] = "; ".join(said)
    tags = _distinct(tag.strip() for notes in sources.values() for tag in notes.get("modelspec.tags", "").split(","))
    if tags:
        found["modelspec.tags"] = ", ".join(tags)
    if len(sizes := _distinct(notes.get("modelspec.resolution") for notes in sources.values())) == 1:
        found["modelspec.resolution"] = sizes[0]
    titles = {kind: notes.get("modelspec.title") for kind, notes in sources.items()}
    if any(titles.values()):
        named = [f"{title or 'a LoRA without a title'} ({kind})" for kind, title in titles.items()]
        found["modelspec.description"] = f"A merge of {' and '.join(named)}."
    return found


def carried(sources: Mapping[str, Adapter]) -> dict[str, str]:
    """The notes of what is made of these LoRAs; a notice for each licence that seems to forbid it."""
    notes = {kind: adapter.notes for kind, adapter in sources.items()}
    for line in forbidden(notes):
        warnings.warn(line, Notice, stacklevel=2)
    return notes_of_merge(notes)


def forbidden(sources: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each source whose licence seems to forbid merging it, or selling what is made with it."""
    lines = []
    for kind, notes in sources.items():
        licence = notes.get("modelspec.license", "")
        for what, pattern in _FORBIDS.items():
            if pattern.search(licence):
                lines.append(f"{kind}: its licence seems to forbid {what}: {licence[:80]}")
    return lines


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def plain(text: str) -> str:
    """The text without control characters and without lone surrogates, which safetensors refuses."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode()
