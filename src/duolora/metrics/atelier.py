"""Atelier's own encoders: the classifier's features in the places of DINO, CSD and CLIP. Never the published metrics.

The classifier (`atelier/classifier.py`) has one trunk and four linear heads, object, style, colour and pattern.

* `atelier-content`, in DINO's place: its penultimate features f (384), as far as the object head sees them, V f with V
  an orthonormal basis of the head's centred rows. Two images of one object agree, whatever the style.
* `atelier-style`, in CSD's place: the same through the style head.
* `atelier-csd`, in CSD's place as well: the style encoder (`atelier/style_encoder.py`), a network of its own, in
  which the classifier has no part; styles that the classifier does not know (`--dataset random`) it judges itself.
* `atelier-image`, in CLIP-I's place: f itself, where content and style are entangled, as in CLIP's images.
* `atelier-text`, in CLIP-T's place: for an image √p, p the classifier's probabilities of all answers, so that every
  question has length 1; for a prompt a one-hot for each question that it answers ("red" answers colour), zeros for the
  others. A prompt that answers the questions Q scores √|Q| / 2 · mean over Q of √p(its answer): at most √|Q| / 2, so
  compare methods on the same prompts only.
"""

import re

import torch
from jaxtyping import Float
from torch import Tensor

from duolora.atelier.classifier import ANSWERS, HEADS, Classifier, load_classifier
from duolora.atelier.style_encoder import load_style_encoder
from duolora.errors import InputError
from duolora.metrics.encoder import Card, NetworkEmbedder, fingerprint
from duolora.metrics.transforms import ATELIER

CHECKPOINT = "Atelier's classifier (embedded)"


def load_atelier(name: str, device: torch.device, progress: bool = False) -> NetworkEmbedder:
    """One of Atelier's encoders: `atelier-content`, `-style`, `-image`, `-text` or `-csd`."""
    if name == "atelier-csd":
        encoder = load_style_encoder().to(device).requires_grad_(False)
        card = Card(
            name, "Atelier's style encoder (embedded)", "means and deviations of features", str(ATELIER),
            fingerprint(encoder.state_dict()), atelier=True,
        )  # fmt: skip
        return NetworkEmbedder(card, ATELIER, encoder, None, device, progress=progress)
    network = load_classifier().to(device).requires_grad_(False)
    heads = {"atelier-content": "object", "atelier-style": "style"}
    if name in heads:
        basis = head_basis(network, heads[name])

        def embed(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
            return network.features(pixels) @ basis.T

        what = f"features through the {heads[name]} head"
    elif name == "atelier-image":

        def embed(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
            return network.features(pixels)

        what = "features"
    else:

        def embed(pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
            return _answers(network, pixels)

        what = "answers to the words of the prompt"
    card = Card(name, CHECKPOINT, what, str(ATELIER), fingerprint(network.state_dict()), atelier=True)
    texts = embed_words if name == "atelier-text" else None
    return NetworkEmbedder(card, ATELIER, embed, texts, device, progress=progress)


def head_basis(network: Classifier, question: str) -> Float[Tensor, "k f"]:
    """An orthonormal basis of what one head can tell apart: its rows less their mean, k = answers − 1."""
    rows = network.get_parameter(f"heads.{HEADS[question]}.weight")
    centred = (rows - rows.mean(0)).double()
    return torch.linalg.svd(centred, full_matrices=False).Vh[: len(rows) - 1].float()


def _answers(network: Classifier, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n answers"]:
    """√p of all answers to all questions; its length is √4 whatever the image."""
    logits = network(pixels)
    return torch.cat([logits[name].softmax(1).sqrt() for name in ANSWERS], 1)


def embed_words(texts: list[str]) -> Float[Tensor, "n answers"]:
    """What each text asks of an image: √share of each answer that it names, zeros for questions that it leaves open.

    A question that a text answers twice ("a red and a blue cat") wants half of each.

    Raises:
        InputError: a text has no word that the classifier knows, such as a prompt of identifiers only.
    """
    rows = []
    for text in texts:
        parts = [_wanted(text, words) for words in ANSWERS.values()]
        if not any(bool(part.any()) for part in parts):
            raise InputError(
                f"prompt {text!r}: expected a word that Atelier's classifier knows (object, style, colour or pattern), "
                f'found none; say it in words, such as "a red {ANSWERS["object"][0]} in {ANSWERS["style"][0]} style"; '
                "of photos, use --metrics paper"
            )
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _wanted(text: str, words: tuple[str, ...]) -> Tensor:
    """√share of the answers that a text names, with equal shares; zeros if it names none."""
    said = [bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.lower())) for word in words]
    named = torch.tensor(said, dtype=torch.float32)
    return (named / named.sum()).sqrt() if any(said) else named
