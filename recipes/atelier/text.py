"""Teach Atelier's text encoders what captions tell apart, before any image: `python -m recipes.atelier.text --help`.

SDXL's text encoders come trained on images and their captions. Atelier's are trained on captions and the scenes behind
them: an attention over the tokens' states, as a UNet has it, and the pooled vector must tell the object, colour and
pattern at every place, the named style, the words of every feature of a made-up one, and every word that was said. An
untrained encoder leaves the words of one caption so alike that a UNet draws blobs for a hundred thousand images before
it tells one object from another; one that knows which words were said, but not of what, leaves a ground in a maroon
frame any colour but its own.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from duolora.atelier.data import base_scene
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.paint import COLOURS
from duolora.atelier.scene import PATTERNS, PLACES
from duolora.atelier.styles import BASE_STYLES
from recipes.atelier.architecture import TEXT_WIDTH, new_text_encoders, save_tokenizer
from recipes.atelier.data import vocabulary

SLOTS = [(number, place) for number in PLACES for place in range(len(PLACES[number]))]
"""Every place of every number of objects."""
ANSWERS = (len(BASE_OBJECTS) + 1, len(COLOURS), len(PATTERNS))
"""How many objects (the nameless ones are one), colours and patterns a place can have."""
FEATURES = {
    "palette": ("colours", "tones", "ink"),
    "ground": ("ground", "behind"),
    "shadow": ("shadow",),
    "lines": ("outlines", "rims", "lines"),
    "frame": ("frame",),
    "texture": (),
}
"""The features of a made-up style, each by the words that only its phrases have; texture has what is left."""
FEATURE_WORDS = 5
"""The most words of a feature that tell something."""
FILLING = {"a", "an", "and", "in", "with"}


def feature_of(phrase: str) -> tuple[int, list[str]]:
    """Which feature a phrase of a made-up style is about, and those of its words that tell something."""
    said = [word for word in phrase.split() if word not in FILLING]
    known = (n for n, marks in enumerate(FEATURES.values()) if set(marks) & set(said))
    return next(known, len(FEATURES) - 1), said


class TextEncoders(nn.Module):
    """Both of SDXL's text encoders, and what the UNet is given of them."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = new_text_encoders(tokenizer)

    def forward(self, tokens: Int[Tensor, "n t"]) -> tuple[Float[Tensor, "n t 2*w"], Float[Tensor, "n w"]]:
        """The states of the last layer but one, side by side, and the pooled vector."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


class Reader(nn.Module):
    """What is told from the encoders' states: thrown away after training."""

    def __init__(self, words: int) -> None:
        super().__init__()
        width = 2 * TEXT_WIDTH
        self.queries = nn.Parameter(torch.randn(len(SLOTS) + len(FEATURES) + 1, width) * width**-0.5)
        self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.places = nn.Linear(width, sum(ANSWERS))
        self.style = nn.Linear(width, len(BASE_STYLES) + 1)
        self.features = nn.Linear(width, FEATURE_WORDS * (words + 1))
        self.pooled_features = nn.Sequential(
            nn.Linear(TEXT_WIDTH, 4 * TEXT_WIDTH),
            nn.SiLU(),
            nn.Linear(4 * TEXT_WIDTH, len(FEATURES) * FEATURE_WORDS * (words + 1)),
        )
        self.pooled_places = nn.Linear(TEXT_WIDTH, sum(ANSWERS))
        self.pooled_style = nn.Linear(TEXT_WIDTH, len(BASE_STYLES) + 1)
        self.pooled_words = nn.Linear(TEXT_WIDTH, words)

    def forward(self, states: Tensor, pooled: Tensor, truth: "Truth") -> Tensor:
        """The sum of all questions' cross entropies, from the tokens' states and from the pooled vector."""
        weights = (self.queries @ self.keys(states).mT * states.shape[-1] ** -0.5).softmax(-1)
        read = weights @ self.values(states)
        loss = F.cross_entropy(self.style(read[:, -1]), truth.style)
        loss += F.cross_entropy(self.pooled_style(pooled), truth.style)
        features = self.features(read[:, len(SLOTS) : -1]).unflatten(-1, (FEATURE_WORDS, -1))
        pooled_features = self.pooled_features(pooled).view_as(features)
        for answers in (features, pooled_features):
            told = F.cross_entropy(answers.flatten(0, 2), truth.features.flatten(), reduction="sum")
            loss += told / len(pooled)
        for answers, right in zip(
            self.places(read[:, : len(SLOTS)]).split(ANSWERS, -1), truth.places.unbind(-1), strict=True
        ):
            loss += F.cross_entropy(answers.flatten(0, 1), right.flatten(), ignore_index=-100)
        alone = truth.places[:, 0]
        for answers, right in zip(self.pooled_places(pooled).split(ANSWERS, -1), alone.unbind(-1), strict=True):
            loss += F.cross_entropy(answers, right, ignore_index=-100)
        said = F.binary_cross_entropy_with_logits(self.pooled_words(pooled), truth.words, reduction="sum")
        return loss + 0.1 * said / len(pooled)


class Truth:
    """What the captions of some scenes were made from."""

    def __init__(self, seeds: range, words: dict[str, int]) -> None:
        self.texts: list[str] = []
        self.places = torch.full((len(seeds), len(SLOTS), 3), -100)
        self.style = torch.zeros(len(seeds), dtype=torch.long)
        self.words = torch.zeros(len(seeds), len(words))
        self.features = torch.full((len(seeds), len(FEATURES), FEATURE_WORDS), len(words))
        """The words' numbers; one more than there are where nothing is said."""
        for n, seed in enumerate(seeds):
            scene, improvised, text = base_scene(np.random.default_rng((9, seed)), bool(seed % 2))
            self.texts.append(text)
            self.style[n] = len(BASE_STYLES) if improvised else BASE_STYLES.index(scene.style)
            for phrase in improvised.words if improvised else ():
                if phrase in text:
                    feature, said = feature_of(phrase)
                    self.features[n, feature, : len(said)] = torch.tensor(
                        [words.get(word, len(words)) for word in said]
                    )
            for place, item in enumerate(scene.objects):
                kind = BASE_OBJECTS.index(item.kind) if item.kind in BASE_OBJECTS else len(BASE_OBJECTS)
                answer = (kind, tuple(COLOURS).index(item.colour), PATTERNS.index(item.pattern))
                self.places[n, SLOTS.index((len(scene.objects), place))] = torch.tensor(answer)
            for word in text.replace(",", " ").split():
                if word in words:
                    self.words[n, words[word]] = 1


def main(
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer and the encoders' weights.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 8,
    batch: int = 64,
    start_from: Annotated[Path | None, typer.Option(help="Such a folder, whose encoders are the start.")] = None,
) -> None:
    """Train both text encoders for some minutes and write them with their tokenizer."""
    started = time.time()
    torch.manual_seed(0)
    known = vocabulary()
    words = {word: n for n, word in enumerate(known)}
    tokenizer = save_tokenizer(out / "tokenizer", known)
    encoders, reader = TextEncoders(tokenizer), Reader(len(known))
    if start_from is not None:
        encoders.load_state_dict(load_file(start_from / "text.safetensors"))
    parameters = [*encoders.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    seen, losses = 0, []
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        truth = Truth(range(seen, seen + batch), words)
        tokens = tokenizer(truth.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        loss = reader(*encoders(tokens), truth)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, seen / 6400 + 0.01, (1 - done) / 0.4)
        optimiser.step()
        seen += batch
        losses.append(float(loss.detach()))
        if len(losses) == 100:
            print(f"{seen} captions, loss {sum(losses) / len(losses):.3f}", flush=True)
            losses = []
    save_file({key: value.contiguous() for key, value in encoders.state_dict().items()}, out / "text.safetensors")
    (out / "text.json").write_text(json.dumps({"captions": seen, "batch": batch, "minutes": minutes}, indent=1))


if __name__ == "__main__":
    typer.run(main)
