"""The diffusion process from a scheduler, and the paper's `Denoise` from a mounted network."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from duolora.errors import InputError
from duolora.model.base import load_base
from duolora.model.blocks import target_modules
from duolora.model.mount import Mount
from duolora.model.predict import GATES, NoiseSchedule, Remembering, denoiser, noise_schedule
from duolora.paper.constyle import Prompts, constyle
from tiny import random_adapter

PROMPTS = ("a cat", "a house in a house", "content")


@pytest.fixture(scope="module")
def base(base_folder):
    return load_base(base_folder, "cpu")


def scheduled(base, **config):
    return noise_schedule(
        replace(base, noise_scheduler=DDPMScheduler.from_config(base.parts.scheduler.config, **config))
    )


def drawn(n=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 3, 5, generator=rng), torch.randn(n, 4, 3, 5, generator=rng)


KINDS = [
    {"prediction_type": "epsilon"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("config", KINDS)
def test_predict_x0_undoes_add_noise_given_the_true_prediction(base, config):
    schedule, (x0, noise) = scheduled(base, **config), drawn()
    process = schedule.process()
    t = torch.tensor([0, 1, 10, 250, 500, 900, 998, 999])
    back = process.predict_x0(process.add_noise(x0, noise, t), t, schedule.target(x0, noise, t))
    torch.testing.assert_close(back, x0, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("config", KINDS)
def test_noise_and_target_are_those_of_diffusers(base, config):
    schedule, (x0, noise) = scheduled(base, **config), drawn()
    theirs = DDPMScheduler.from_config(base.parts.scheduler.config, **config)
    t = torch.tensor([0, 1, 10, 250, 500, 900, 998, 999])
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t))
    target = noise if config["prediction_type"] == "epsilon" else theirs.get_velocity(x0, noise, t)
    torch.testing.assert_close(schedule.target(x0, noise, t), target)


def test_zero_terminal_signal_is_safe_for_velocity_and_refused_for_noise(base):
    schedule, (x0, noise) = scheduled(base, **KINDS[2]), drawn()
    t = torch.full((8,), 999)
    assert torch.equal(schedule.add_noise(x0, noise, t), noise)
    torch.testing.assert_close(schedule.predict_x0(noise, t, -x0), x0)
    with pytest.raises(InputError, match=r"zero terminal signal.*v_prediction"):
        scheduled(base, prediction_type="epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(InputError, match="prediction_type is 'sample'"):
        scheduled(base, prediction_type="sample")


def test_narrow_latents_are_computed_in_float32(base):
    schedule, (x0, noise) = scheduled(base), drawn()
    t = torch.full((8,), 3)
    y = schedule.add_noise(x0.bfloat16(), noise.bfloat16(), t)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, schedule.add_noise(x0.bfloat16().float(), noise.bfloat16().float(), t))


def test_timesteps_are_uniform_and_seeded(base):
    schedule = scheduled(base)
    t = schedule.sample_timesteps(20000, torch.Generator().manual_seed(0))
    assert torch.bincount(t // 250).tolist() == pytest.approx([5000] * 4, rel=0.1)
    assert torch.equal(t, schedule.sample_timesteps(20000, torch.Generator().manual_seed(0)))
    assert t.min() == 0 and t.max() == 999


@pytest.fixture(scope="module")
def mounted(base):
    names = target_modules(base.unet)
    adapters = [random_adapter(base.unet, names[1:], 3, 1), random_adapter(base.unet, names[:-1], 2, 2)]
    mount = Mount(base.unet, adapters)
    row = torch.rand(mount.columns, generator=torch.Generator().manual_seed(0))
    masks = [{k: m.clone().requires_grad_() for k, m in part.items()} for part in mount.unflat(row)]
    return mount, masks, denoiser(base, mount, [*PROMPTS, PROMPTS[0]], lambda: mount.flat(masks))


def noisy(n):
    rng = torch.Generator().manual_seed(4)
    return torch.randn(n, 4, 8, 8, generator=rng), torch.randint(1000, (n,), generator=rng)


def test_a_mixed_call_equals_separate_ones_with_the_masks_put_in_by_hand(base, mounted):
    mount, masks, denoise = mounted
    x, t = noisy(6)
    prompt = [PROMPTS[i % 3] for i in range(6)]
    none, full = ([{k: torch.full_like(m, v) for k, m in part.items()} for part in masks] for v in (0, 1))
    by_hand = {
        "base": none,
        "content": [full[0], none[1]],
        "style": [none[0], full[1]],
        "merged": masks,
        "content_masked": [masks[0], none[1]],
        "style_masked": [none[0], masks[1]],
    }
    embeds = base.encode_prompts(prompt)
    with mount, torch.no_grad():
        mixed = denoise(x, t, prompt, GATES)
        for i, gate in enumerate(GATES):
            conditions = {"text_embeds": embeds.pooled[[i]], "time_ids": base.time_ids()}
            with mount.gating(mount.flat(by_hand[gate])[None]):
                expected = base.unet(x[[i]], t[[i]], embeds.embeds[[i]], added_cond_kwargs=conditions).sample
            torch.testing.assert_close(mixed[[i]], expected, rtol=1e-4, atol=1e-5)
        for i in range(1, 6):
            assert not torch.allclose(denoise(x, t, prompt, ["base"] * 6)[i], mixed[i], atol=1e-3)


def test_masks_are_read_anew_in_each_call(mounted):
    mount, masks, denoise = mounted
    x, t = noisy(1)
    mask = next(iter(masks[0].values()))
    with mount, torch.no_grad():
        before, teacher = (denoise(x, t, [PROMPTS[0]], [gate]) for gate in ("merged", "content"))
        mask += 5
        assert not torch.allclose(denoise(x, t, [PROMPTS[0]], ["merged"]), before, atol=1e-4)
        assert torch.equal(denoise(x, t, [PROMPTS[0]], ["content"]), teacher)
        mask -= 5


def test_the_constyle_loss_runs_on_a_network_and_trains_only_masks(base, mounted):
    mount, masks, denoise = mounted
    schedule, (x, t) = noise_schedule(base), noisy(2)
    prompts = Prompts(*PROMPTS)
    with mount:
        for variant in ("masked", "teacher"):
            noise = torch.randn_like(x)
            terms = constyle(denoise, schedule.process(), x, x.flip(0), t, noise, prompts, variant)
            (terms.reconstruction + terms.cycle_style + terms.cycle_content).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for part in masks for m in part.values())
    assert all(p.grad is None for p in base.unet.parameters())


def test_unknown_prompts_and_gates_are_named(base, mounted):
    mount, _, denoise = mounted
    x, t = noisy(1)
    with pytest.raises(InputError, match="got 'a dog'"):
        denoise(x, t, ["a dog"], ["base"])
    with pytest.raises(InputError, match="got 'nothing'"):
        denoise.predict(x, t, ["nothing"], mount.owned()[:1])
    with pytest.raises(ValueError, match="two adapters"):
        denoiser(base, Mount(base.unet, []), PROMPTS, lambda: torch.zeros(0))


def test_a_prompt_that_is_called_like_a_gate_is_still_a_prompt(base, mounted):
    mount, masks, denoise = mounted
    x, t = noisy(1)
    fresh = denoiser(base, mount, ["content"], lambda: mount.flat(masks))
    with mount, torch.no_grad():
        named = denoise(x, t, ["content"], ["content"])
        torch.testing.assert_close(named, fresh.predict(x, t, ["content"], mount.owned()[:1]))
        assert not torch.allclose(named, denoise(x, t, PROMPTS[:1], ["content"]), atol=1e-4)


def test_teachers_are_computed_once_for_a_draw_and_the_student_anew(base, mounted):
    mount, _, denoise = mounted
    remembering, (x, t) = Remembering(denoise), noisy(2)
    calls = []
    hook = base.unet.register_forward_hook(lambda *_: calls.append(1))
    with mount, torch.no_grad():
        for draw in (0, 1, 0, 1, None, None):
            remembering.begin(draw)
            first = remembering(x, t, ["content"] * 2, ["content", "style"])
            if draw == 0:
                torch.testing.assert_close(first, denoise(x, t, ["content"] * 2, ["content", "style"]))
            remembering(x, t, ["content"] * 2, ["content", "merged"])
    hook.remove()
    assert len(calls) == 2 + 2 + 2 + 6


@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_bounds_the_weight_of_x0_by_gamma(velocity):
    """As a loss of x̂₀, ε weighs SNR and v weighs SNR + 1: with the weight, each is min(SNR, γ)."""
    alpha = torch.linspace(0.99, 0.01, 50).sqrt()
    schedule = NoiseSchedule(alpha, (1 - alpha**2).sqrt(), velocity)
    t = torch.arange(50)
    snr = (alpha / schedule.sigma) ** 2
    as_x0 = schedule.min_snr_weight(t, 5.0) * (snr + 1 if velocity else snr)
    torch.testing.assert_close(as_x0, snr.clamp(max=5.0))
    assert float(as_x0.max()) == pytest.approx(5.0)
