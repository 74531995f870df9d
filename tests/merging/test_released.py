"""The preset `released` against a slow re-derivation: dense weights, one mask for an attention, one pass at a time."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import mse_loss

from duolora.api.merge import options_of
from duolora.errors import InputError
from duolora.lora.read.file import read_adapter
from duolora.merging.inputs import Calibration, first_masks, sources
from duolora.merging.learn import learn, learner
from duolora.merging.options import WEIGHTS
from duolora.model.predict import noise_schedule
from duolora.paper.constyle import Prompts
from duolora.paper.layer_prior import layer_prior
from duolora.training.checkpoint import step_generator

PROMPTS = Prompts("a sks cat in flat style", "a house in zwx style", "a sks cat in zwx style")


def attention(name):
    return name.rpartition(".to_")[0]


def slowly(base, both, data, steps):
    """The masks of each attention after some updates, by what is known of the authors' program."""
    loras, masks = (both.content, both.style), []
    for side in loras:
        ranks = {attention(name): lora.rank for name, lora in side.items()}
        masks.append({name: torch.ones(rank, requires_grad=True) for name, rank in ranks.items()})
    weights, schedule = dict(base.unet.named_parameters()), noise_schedule(base)
    prompts = base.encode_prompts([PROMPTS.content, PROMPTS.style, PROMPTS.merged])
    size = base.time_ids()

    def predicted(x, t, prompt, content, style):
        changed = {}
        for name in both.roles:
            delta = sum(
                side[name].scale * side[name].up @ (m[attention(name)][:, None] * side[name].down)
                for side, m in ((both.content, content), (both.style, style))
                if m
            )
            changed[f"{name}.weight"] = weights[f"{name}.weight"] + delta
        conditions = {"text_embeds": prompts.pooled[[prompt]], "time_ids": size}
        arguments = {"added_cond_kwargs": conditions, "return_dict": False}
        return functional_call(base.unet, changed, (x, t, prompts.embeds[[prompt]]), arguments)[0]

    ones = [{name: torch.ones_like(m) for name, m in side.items()} for side in masks]
    every = [m for side in masks for m in side.values()]
    optimiser = torch.optim.AdamW(every, lr=0.01, weight_decay=1e-4)
    for step in range(steps):
        rng = step_generator(0, step)
        x_c, x_s = (x[torch.randint(len(x), (1,), generator=rng)] for x in (data.x_c, data.x_s))
        t = schedule.sample_timesteps(1, rng)
        noise = torch.randn(x_c.shape, generator=rng)
        x_ct, x_st = schedule.add_noise(x_c, noise, t), schedule.add_noise(x_s, noise, t)
        with torch.no_grad():
            own_c, own_s = predicted(x_ct, t, 0, ones[0], {}), predicted(x_st, t, 1, {}, ones[1])
            x_cs = schedule.predict_x0(x_ct, t, predicted(x_ct, t, 2, {}, ones[1]))
            x_sc = schedule.predict_x0(x_st, t, predicted(x_st, t, 2, ones[0], {}))
            back_c = predicted(schedule.add_noise(x_cs, noise, t), t, 0, {}, ones[1])
            back_s = predicted(schedule.add_noise(x_sc, noise, t), t, 1, ones[0], {})
        both_c, both_s = predicted(x_ct, t, 0, *masks), predicted(x_st, t, 1, *masks)
        reconstruction = mse_loss(both_c, own_c) + mse_loss(both_s, own_s)
        cycle = mse_loss(both_c, back_c) + mse_loss(both_s, back_s)
        priors = []
        for name, role in {attention(n): role for n, role in both.roles.items()}.items():
            if role != "neutral":
                led, other = (side[name] for side in (masks if role == "content" else masks[::-1]))
                priors.append(led.abs().sum() + (other**2).sum().sqrt() - (led**2).sum().sqrt())
        (reconstruction + 0.1 * cycle + 0.01 * sum(priors) / len(priors)).backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return masks


@pytest.fixture(scope="module")
def data(base):
    rng = torch.Generator().manual_seed(0)
    size = base.unet.config.sample_size
    return Calibration(*(torch.randn(n, 4, size, size, generator=rng) for n in (4, 1)), PROMPTS)


@pytest.fixture
def loras(whole_loras):
    """With all layers of each attention, since they share a mask."""
    return whole_loras


def released(base, loras, **changes):
    options = options_of("duolora", **WEIGHTS["released"] | changes)
    return options, sources(base.architecture, *map(read_adapter, loras), options)


def test_it_is_the_authors_program(base, loras, data):
    options, both = released(base, loras, steps=12)
    done = learn(base, both, options, data, progress=False)
    expected = slowly(base, both, data, steps=3)  # 12 updates with one image, 3 with four
    for found, wanted in zip((done.content_masks, done.style_masks), expected, strict=True):
        assert found
        for name, m in found.items():
            torch.testing.assert_close(m, wanted[attention(name)].detach(), rtol=0, atol=2e-4)
            assert (m - 1).abs().max() > 0.01


@pytest.mark.parametrize(("images", "updates"), [(1, 100), (4, 25), (5, 20), (6, 17)])
def test_updates_by_the_number_of_images(base, loras, data, images, updates, monkeypatch):
    options, both = released(base, loras)
    steps = []
    monkeypatch.setattr("duolora.merging.learn.Learner.step", lambda self, step: steps.append(step) or {"loss": 0.0})
    learn(base, both, options, Calibration(data.x_s.expand(images, -1, -1, -1), data.x_s, PROMPTS), progress=False)
    assert steps == list(range(updates))


@pytest.mark.parametrize(("preset", "prior"), [("section4", 0.1), ("table9", 1.0)])
def test_printed_weights_multiply_the_cycle_and_average_layers(preset, prior):
    """As Table 9's row 0/0 shows, which has ZipRank's numbers: with `all` it would have no loss."""
    options = options_of("duolora", **WEIGHTS[preset])
    assert (options.lambda_layer_prior, options.lambda_cycle) == (prior, 0.01)
    assert (options.multiplies, options.reduction) == ("cycle", "mean")


def test_the_prior_pulls_at_both_masks(base, loras):
    options, _ = released(base, loras)
    m_c, m_s = (torch.ones(64, requires_grad=True) for _ in range(2))
    layer_prior(m_c, m_s, "content", options.prior_lambda, options.norm, options.hinge, options.sparsity).backward()
    torch.testing.assert_close(m_c.grad, torch.full((64,), 0.875))
    torch.testing.assert_close(m_s.grad, torch.full((64,), 0.125))


def test_one_mask_for_an_attention_needs_one_rank(base, loras, data):
    options, both = released(base, loras)
    name = next(iter(both.content))
    lora = both.content[name]
    both.content[name] = type(lora)(lora.up[:, :2], lora.down[:2], lora.scale)
    with (
        pytest.raises(InputError, match="tied=false"),
        learner(base, both, options, data, *first_masks(both, options, base.device)),
    ):
        pass
