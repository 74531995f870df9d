"""Mounted adapters against dense weights, and the network left as it was."""

from copy import deepcopy

import pytest
import torch

from duolora.errors import BaseMismatch
from duolora.model.blocks import target_modules
from duolora.model.mount import Axis, Mount
from duolora.paper.lowrank import LowRank
from duolora.paper.ziplora import input_masked, output_masked
from duolora.paper.ziprank import masked
from tiny import random_adapter, tiny_inputs, tiny_unet

APPLY = {"rank": masked, "output": output_masked, "input": input_masked}
AXES: tuple[Axis, ...] = ("rank", "output", "input")


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def adapters(unet):
    """Two adapters of different ranks; each leaves out modules that the other covers."""
    names = target_modules(unet)
    return [random_adapter(unet, names[:-3], 4, seed=1), random_adapter(unet, names[2:], 3, seed=2, scale=0.7)]


def random_masks(mount: Mount, seed: int = 5) -> list[dict[str, torch.Tensor]]:
    return mount.unflat(torch.rand(mount.columns, generator=torch.Generator().manual_seed(seed)) * 1.5)


def dense(unet, *parts: dict[str, LowRank]):
    """The slow reference: a copy of the UNet with W + ΔW in its weights."""
    other = deepcopy(unet)
    for part in parts:
        for name, lora in part.items():
            other.get_submodule(name).weight.data += lora.delta()
    return other


def call(unet, **inputs):
    return unet(**inputs)[0]


def rows(inputs, index):
    """The samples `index` of a batch."""
    conditions = {k: v[index] for k, v in inputs["added_cond_kwargs"].items()}
    taken = {k: v[index] for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    return {**inputs, **taken, "added_cond_kwargs": conditions}


@pytest.mark.parametrize("axis", AXES)
def test_each_gate_of_a_mixed_batch_equals_dense_weights(unet, adapters, axis):
    inputs = tiny_inputs(4)
    mount = Mount(unet, adapters, axis)
    masks = random_masks(mount)
    content, style = mount.owned()
    gates = torch.stack([torch.zeros_like(content), content, style, mount.flat(masks)])
    with mount, mount.gating(gates), torch.no_grad():
        mixed = call(unet, **inputs)
    halves = [{n: APPLY[axis](lora, m[n]) for n, lora in a.items()} for a, m in zip(adapters, masks, strict=True)]
    references = [unet, dense(unet, adapters[0]), dense(unet, adapters[1]), dense(unet, *halves)]
    bare = call(unet, **inputs)
    for i, reference in enumerate(references):
        expected = call(reference, **rows(inputs, [i]))
        torch.testing.assert_close(mixed[[i]], expected, rtol=1e-4, atol=1e-5)
        assert i == 0 or (expected - bare[i]).abs().max() > 0.05, "the adapter has to be seen"


@pytest.mark.parametrize("axis", AXES)
def test_a_mixed_batch_equals_separate_calls(unet, adapters, axis):
    inputs = tiny_inputs(3)
    mount = Mount(unet, adapters, axis)
    gates = torch.rand(3, mount.columns, generator=torch.Generator().manual_seed(0))
    with mount, torch.no_grad():
        with mount.gating(gates):
            mixed = call(unet, **inputs)
        for i in range(3):
            with mount.gating(gates[[i]]):
                torch.testing.assert_close(mixed[[i]], call(unet, **rows(inputs, [i])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_one_row_holds_for_the_whole_batch(unet, adapters, axis):
    inputs = tiny_inputs(2)
    mount = Mount(unet, adapters, axis)
    row = mount.flat(random_masks(mount))
    with mount, torch.no_grad():
        with mount.gating(row[None]):
            one = call(unet, **inputs)
        with mount.gating(row.repeat(2, 1)):
            assert torch.equal(one, call(unet, **inputs))


def test_flat_and_unflat_are_inverses(unet, adapters):
    for axis in AXES:
        mount = Mount(unet, adapters, axis)
        row = torch.rand(mount.columns)
        masks = mount.unflat(row)
        assert torch.equal(mount.flat(masks), row)
        assert [set(m) for m in masks] == [set(a) for a in adapters]
        assert torch.equal(mount.owned().sum(0), torch.ones(mount.columns))


def state(unet):
    """Everything about the modules that a mount could leave behind."""
    return {
        name: (module.__dict__.get("forward"), {k: len(v) for k, v in module.__dict__.items() if "hooks" in k and v})
        for name, module in unet.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_bit_for_bit_what_it_was(unet, adapters, fails):
    inputs = tiny_inputs()
    weights, modules, output = deepcopy(unet.state_dict()), state(unet), call(unet, **inputs)
    mount = Mount(unet, adapters)
    try:
        with mount, mount.gating(torch.ones(1, mount.columns)):
            assert not torch.equal(call(unet, **inputs), output)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    after = unet.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[k], after[k]) for k in weights)
    assert state(unet) == modules
    assert torch.equal(call(unet, **inputs), output)


def test_a_forward_that_the_module_had_of_its_own_comes_back(unet, adapters):
    linear = unet.get_submodule(next(iter(adapters[0])))
    own = linear.forward
    linear.forward = own
    with Mount(unet, adapters):
        assert linear.__dict__["forward"] is not own
    assert linear.__dict__.pop("forward") is own


def test_outside_gating_a_mounted_network_is_the_bare_one(unet, adapters):
    inputs = tiny_inputs()
    bare = call(unet, **inputs)
    with Mount(unet, adapters) as mount:
        assert torch.equal(call(unet, **inputs), bare)
        with mount.gating(torch.ones(1, mount.columns)):
            assert not torch.equal(call(unet, **inputs), bare)
        assert torch.equal(call(unet, **inputs), bare)


def test_mounts_nest(unet, adapters):
    inputs = tiny_inputs(1)
    inner, outer = Mount(unet, adapters[:1]), Mount(unet, adapters[1:])
    with outer, inner, inner.gating(torch.ones(1, inner.columns)), outer.gating(torch.ones(1, outer.columns)):
        both = call(unet, **inputs)
    torch.testing.assert_close(both, call(dense(unet, *adapters), **inputs), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="already entered"), inner:
        inner.__enter__()


@pytest.mark.parametrize("axis", AXES)
def test_gradients_reach_the_masks_alone(unet, adapters, axis):
    trained = [{n: LowRank(a.up.requires_grad_(), a.down, a.scale) for n, a in part.items()} for part in adapters]
    mount = Mount(unet, trained, axis)
    masks = [{n: m.clone().requires_grad_() for n, m in part.items()} for part in random_masks(mount)]
    with mount, mount.gating(mount.flat(masks)[None]):
        call(unet, **tiny_inputs()).square().mean().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for part in masks for m in part.values())
    assert all(p.grad is None for p in unet.parameters())
    assert all(a.up.grad is None for part in trained for a in part.values())
    for part in adapters:
        for lora in part.values():
            lora.up.requires_grad_(False)


def test_gradient_is_the_slope_of_the_loss(unet, adapters):
    mount, inputs = Mount(unet, adapters), tiny_inputs(2)
    row = mount.flat(random_masks(mount)).requires_grad_()
    direction = torch.randn(mount.columns, generator=torch.Generator().manual_seed(3))

    def loss(row):
        with mount.gating(row[None]):
            return call(unet, **inputs).square().mean()

    with mount:
        (grad,) = torch.autograd.grad(loss(row), row)
        with torch.no_grad():
            slope = (loss(row + 1e-3 * direction) - loss(row - 1e-3 * direction)) / 2e-3
    torch.testing.assert_close(grad @ direction, slope, rtol=1e-2, atol=1e-4)


def test_gradient_checkpointing_recomputes_with_the_gates_of_the_call(adapters):
    unet = tiny_unet()
    inputs, grads = tiny_inputs(2), []
    for checkpointed in (False, True):
        unet.enable_gradient_checkpointing() if checkpointed else unet.disable_gradient_checkpointing()
        functions = {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in unet.named_modules()}
        mount = Mount(unet, adapters)
        row = mount.flat(random_masks(mount)).requires_grad_()
        with mount:
            with mount.gating(row[None]):
                loss = call(unet, **inputs).square().mean()
            with mount.gating(torch.zeros(1, mount.columns)):
                grads += torch.autograd.grad(loss, row)
        assert functions == {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in unet.named_modules()}
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_a_bfloat16_network_takes_float32_masks(adapters):
    unet = tiny_unet().to(torch.bfloat16)
    mount = Mount(unet, adapters)
    assert all(s.up.dtype == s.down.dtype == torch.bfloat16 for s in mount.modules.values())
    row = mount.flat(random_masks(mount)).requires_grad_()
    inputs = tiny_inputs(2, dtype=torch.bfloat16)
    with mount, mount.gating(row[None]):
        y = call(unet, **inputs)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and row.grad.dtype == torch.float32
    assert row.grad.isfinite().all() and row.grad.abs().sum() > 0
    wide = tiny_unet()
    with Mount(wide, adapters) as mount, mount.gating(row.detach()[None]):
        reference = call(wide, **tiny_inputs(2))
    assert (y.float() - reference).abs().max() < 0.1 * reference.abs().max()


def test_what_does_not_fit_is_named(unet, adapters):
    name, lora = next(iter(adapters[0].items()))
    with pytest.raises(BaseMismatch, match=r"no_such.to_q"):
        Mount(unet, [{"no_such.to_q": lora}])
    wrong = LowRank(torch.zeros(7, 2), torch.zeros(2, 9))
    with pytest.raises(BaseMismatch, match=rf"{name}.*32×32.*7×9"):
        Mount(unet, [{name: wrong}])
    with pytest.raises(BaseMismatch, match=r"conv_in.*Conv2d"):
        Mount(unet, [{"conv_in": lora}])
    with (
        pytest.raises(ValueError, match="expected gates"),
        Mount(unet, adapters) as mount,
        mount.gating(torch.ones(1, 3)),
    ):
        pass


def test_no_adapters_is_the_bare_network(unet):
    inputs = tiny_inputs(1)
    with Mount(unet, []) as mount, mount.gating(torch.zeros(1, 0)):
        assert torch.equal(call(unet, **inputs), call(tiny_unet(), **inputs))
