"""K-LoRA: one LoRA or the other in each module, chosen anew at each step."""

import torch

from duolora.lora.read.file import read_adapter
from duolora.merging.inputs import Sources, sources
from duolora.merging.klora import klora, ratio_of, scores, strength_at
from duolora.merging.options import MergeOptions
from duolora.model.mount import Mount
from duolora.model.sample import sample_images
from duolora.paper.lowrank import LowRank


def test_scores_compare_the_largest_entries():
    strong, weak = LowRank(torch.tensor([[2.0], [1.0]]), torch.ones(1, 2)), LowRank(torch.ones(2, 1), torch.ones(1, 2))
    found = scores(Sources({"x": strong}, {"x": weak}, {}, {}, {"x": "content"}))
    gamma = 6 / 4
    assert found.content["x"] == 2.0
    assert found.style["x"] == gamma
    assert found.content_wins("x", 1.3)
    assert not found.content_wins("x", 1.4)


def test_gamma_is_the_mean_ratio_without_outliers():
    assert ratio_of([1.0, 2.0, 3.0]) == 2.0
    assert ratio_of([1.0, 1.0, 1.0, 2.0, 95.0]) == 1.25
    assert ratio_of([]) == 1.0
    sizes = {"a": (1.0, 1.0), "b": (6.0, 2.0), "c": (2.0, 1.0)}
    content, style = (
        {n: LowRank(torch.full((2, 1), s[k]), torch.ones(1, 2)) for n, s in sizes.items()} for k in (0, 1)
    )
    found = scores(Sources(content, style, {}, {}, dict.fromkeys(sizes, "content")))
    assert found.style == {"a": 2.0, "b": 4.0, "c": 2.0}, "γ is (1 + 3 + 2) / 3, where totals would say 9 / 4"


def test_the_strength_begins_high_and_wraps():
    assert [round(strength_at(t), 3) for t in (0.0, 0.1, 0.2, 0.6, 1.0)] == [1.275, 1.425, 0.075, 0.675, 1.275]


def test_k_says_how_many_entries_count():
    peaked = LowRank(torch.tensor([[3.0], [0.0]]), torch.ones(1, 2))
    even = LowRank(torch.full((2, 1), 2.0), torch.ones(1, 2))
    both = Sources({"x": peaked}, {"x": even}, {}, {}, {"x": "content"})
    assert scores(both, 1).content_wins("x", 1.0)
    assert not scores(both, 4).content_wins("x", 1.1)
    assert scores(both, 4).content == {"x": 6.0}


def test_a_module_of_one_lora_goes_to_that_lora():
    one = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    found = scores(Sources({"c": one}, {"s": one}, {}, {}, {"c": "content", "s": "style"}))
    assert found.content_wins("c", 1.0)
    assert not found.content_wins("s", 0.0)


def test_extreme_strengths_are_the_loras_alone(base, loras, monkeypatch):
    both = sources(base.architecture, *(read_adapter(path) for path in loras), MergeOptions())
    prompt, seeds = ["a sks cat in zwx style"], [3]
    plain = sample_images(base, prompt, seeds, steps=3)
    drawn = []
    for strength in (lambda t: 0.0, lambda t: 1e9, lambda t: 0.9 * t + 0.7):
        monkeypatch.setattr("duolora.merging.klora.strength_at", strength)
        with klora(base, both) as choose:
            drawn.append(sample_images(base, prompt, seeds, steps=3, before_step=choose))
    with Mount(base.unet, [both.content, both.style], "rank") as mount:
        for row, image in zip(mount.owned(), drawn, strict=False):
            with mount.gating(row[None]):
                torch.testing.assert_close(sample_images(base, prompt, seeds, steps=3), image)
    assert not torch.allclose(drawn[2], drawn[0])
    assert not torch.allclose(drawn[2], drawn[1])
    assert torch.equal(sample_images(base, prompt, seeds, steps=3), plain)
