"""The teacher of the merged prompt: who it is at which noise level, and who learns from it."""

import pytest
import torch

from duolora.merging.handover import found_handover, merged_prompt_loss
from duolora.networks.denoise import NoiseSchedule
from duolora.paper.constyle import Prompts

PROMPTS = Prompts("content prompt", "style prompt", "both")
SIGNAL = torch.linspace(0.99, 0.01, 100)
SCHEDULE = NoiseSchedule(SIGNAL.sqrt(), (1 - SIGNAL).sqrt(), False)


class Toy:
    """A network whose prediction is what its gate adds; it notes each sample's timestep, prompt and gate."""

    def __init__(self, content=1.0, style=lambda t: 2.0):
        self.content, self.style, self.seen = content, style, []
        self.merged = torch.tensor(0.5, requires_grad=True)

    def __call__(self, x, t, prompt, gate):
        self.seen += [(int(at), p, g) for at, p, g in zip(t, prompt, gate, strict=True)]
        adds = {"base": lambda _: 0.0, "content": lambda _: self.content, "style": self.style}
        made = [self.merged if g == "merged" else adds[g](int(at)) for at, g in zip(t, gate, strict=True)]
        return torch.stack([0 * one + add for one, add in zip(x, made, strict=True)])


def latents(n):
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("style", "found"),
    [
        (lambda t: 2.0, 1.0),
        (lambda t: 0.5, 0.0),
        (lambda t: 2.0 if t < 60 else 0.5, 0.6),
        (lambda t: 0.5 if t < 60 else 2.0, 1.0),
        (lambda t: -2.0 if t < 60 else 0.0, 0.6),
    ],
    ids=["always", "never", "low noise", "high noise", "sign does not matter"],
)
def test_the_look_leads_below_the_highest_level_at_which_it_changes_more(style, found):
    toy = Toy(style=style)
    assert found_handover(toy, SCHEDULE, latents(6), PROMPTS, seed=0) == pytest.approx(found)
    assert {(p, g) for _, p, g in toy.seen} == {
        ("content prompt", "base"), ("content prompt", "content"), ("both", "base"), ("both", "style")
    }  # fmt: skip


def test_each_sample_has_the_teacher_of_its_noise_level():
    toy, t = Toy(), torch.tensor([10, 69, 70, 99])
    loss = merged_prompt_loss(toy, SCHEDULE, latents(4), t, latents(4), PROMPTS, 0.7)
    assert toy.seen[:4] == [
        (10, "both", "style"), (69, "both", "style"),
        (70, "content prompt", "content"), (99, "content prompt", "content"),
    ]  # fmt: skip
    assert toy.seen[4:] == [(int(at), "both", "merged") for at in t]
    assert float(loss.detach()) == pytest.approx((2 * 1.5**2 + 2 * 0.5**2) / 4)


def test_only_the_merge_learns():
    toy = Toy()
    toy.content = torch.tensor(1.0, requires_grad=True)
    merged_prompt_loss(toy, SCHEDULE, latents(2), torch.tensor([5, 95]), latents(2), PROMPTS, 0.5).backward()
    assert toy.content.grad is None
    assert toy.merged.grad == pytest.approx(2 * ((0.5 - 2) + (0.5 - 1)) / 2)
