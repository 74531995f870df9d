"""Constyle (Sec. 3.4): its terms against a slow reference, who gets a gradient, and how many network calls it takes."""

from dataclasses import astuple

import pytest
import torch

from duolora.paper.constyle import ConstyleTerms, Process, Prompts, constyle, overall

C, H, W, N, RANK = 2, 3, 3, 2, 3
D = C * H * W
VARIANTS = ["none", "masked", "teacher"]
SIGNAL = torch.linspace(0.99, 0.2, 10)
PROMPTS = Prompts("content prompt", "style prompt", "both")


def scales(t):
    signal = SIGNAL[t][:, None, None, None]
    return signal.sqrt(), (1 - signal).sqrt()


def epsilon_process():
    def add_noise(x, noise, t):
        a, s = scales(t)
        return a * x + s * noise

    def predict_x0(x, t, prediction):
        a, s = scales(t)
        return (x - s * prediction) / a

    return Process(add_noise, predict_x0)


def velocity_process():
    def predict_x0(x, t, prediction):
        a, s = scales(t)
        return a * x - s * prediction

    return Process(epsilon_process().add_noise, predict_x0)


class Toy:
    """A one-layer network with two LoRAs of rank 3 under rank masks; it counts what it is asked."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.base = torch.randn(D, D, generator=g) / D**0.5
        self.loras = [(torch.randn(D, RANK, generator=g) / 3, torch.randn(RANK, D, generator=g) / 3) for _ in range(2)]
        self.words = {p: torch.randn(D, generator=g) for p in astuple(PROMPTS)}
        self.masks = [torch.rand(RANK, generator=g).requires_grad_() for _ in range(2)]
        self.calls = []

    def swapped(self):
        other = Toy()
        other.loras, other.masks = self.loras[::-1], self.masks[::-1]
        return other

    def gate(self, name):
        one, zero = torch.ones(RANK), torch.zeros(RANK)
        m_c, m_s = self.masks
        return {
            "base": (zero, zero),
            "content": (one, zero),
            "style": (zero, one),
            "merged": (m_c, m_s),
            "content_masked": (m_c, zero),
            "style_masked": (zero, m_s),
        }[name]

    def one(self, x, t, prompt, gate):
        flat = x.flatten()
        y = self.base @ flat + self.words[prompt] + 0.1 * t
        for (up, down), g in zip(self.loras, self.gate(gate), strict=True):
            y = y + up @ (g * (down @ flat))
        return y.tanh().reshape(x.shape)

    def __call__(self, x, t, prompt, gate):
        assert len(x) == len(t) == len(prompt) == len(gate)
        self.calls.append((len(x), torch.is_grad_enabled()))
        return torch.stack([self.one(*sample) for sample in zip(x, t, prompt, gate, strict=True)])


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    x_c, x_s, noise = (torch.randn(N, C, H, W, generator=g) for _ in range(3))
    return x_c, x_s, torch.randint(0, 10, (N,), generator=g), noise


def slow_constyle(toy, process, x_c, x_s, t, noise, variant):
    """Sec. 3.4 sentence by sentence: one image, one pass at a time."""
    totals = torch.zeros(3)
    via_c, via_s = ("content_masked", "style_masked") if variant == "masked" else ("content", "style")
    sides = ((x_c, PROMPTS.content, "content", via_s, 1), (x_s, PROMPTS.style, "style", via_c, 2))
    for x, prompt, own, via_other, term in sides:
        for b in range(N):
            one = slice(b, b + 1)

            def pass_(x_t, p, gate, b=b):
                return toy.one(x_t[0], t[b], p, gate)[None]

            def clean(x_t, prediction, one=one):
                return process.predict_x0(x_t, t[one], prediction)

            x_t = process.add_noise(x[one], noise[one], t[one])
            teacher, student = pass_(x_t, prompt, own), pass_(x_t, prompt, "merged")
            totals[0] += (student - teacher).square().mean() / N
            if variant == "none":
                continue
            other = clean(x_t, pass_(x_t, PROMPTS.merged, via_other))
            other_t = process.add_noise(other, noise[one], t[one])
            back = pass_(other_t, prompt, via_other)
            start = student if variant == "teacher" else teacher
            totals[term] += (start - back).square().mean() / N
    return totals


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("process", [epsilon_process(), velocity_process()], ids=["epsilon", "velocity"])
def test_against_the_slow_reference(process, variant):
    toy = Toy()
    terms = constyle(toy, process, *inputs(), PROMPTS, variant)
    slow = slow_constyle(toy, process, *inputs(), variant)
    torch.testing.assert_close(torch.stack(astuple_of(terms)), slow)
    assert variant == "none" or min(terms.cycle_style, terms.cycle_content) > 1e-4


def astuple_of(terms):
    return [terms.reconstruction, terms.cycle_style, terms.cycle_content]


@pytest.mark.parametrize("variant", VARIANTS)
def test_swapping_content_and_style_swaps_the_terms(variant):
    toy, (x_c, x_s, t, noise) = Toy(), inputs()
    terms = constyle(toy, epsilon_process(), x_c, x_s, t, noise, PROMPTS, variant)
    mirror = Prompts(PROMPTS.style, PROMPTS.content, PROMPTS.merged)
    other = constyle(toy.swapped(), epsilon_process(), x_s, x_c, t, noise, mirror, variant)
    torch.testing.assert_close(terms.reconstruction, other.reconstruction)
    torch.testing.assert_close(terms.cycle_style, other.cycle_content)
    torch.testing.assert_close(terms.cycle_content, other.cycle_style)


@pytest.mark.parametrize(
    ("variant", "calls"),
    [
        ("none", [(2 * N, False), (2 * N, True)]),
        ("teacher", [(4 * N, False), (2 * N, True), (2 * N, False)]),
        ("masked", [(2 * N, False), (4 * N, True), (2 * N, True)]),
    ],
)
def test_network_calls_with_their_batch_and_gradient(variant, calls):
    toy = Toy()
    constyle(toy, epsilon_process(), *inputs(), PROMPTS, variant)
    assert toy.calls == calls


@pytest.mark.parametrize("variant", ["masked", "teacher"])
def test_the_cycle_reaches_all_masks(variant):
    """As printed it does not: no merged LoRA occurs in MSE(I_cc, I_csc) + MSE(I_ss, I_scs)."""
    toy = Toy()
    terms = constyle(toy, epsilon_process(), *inputs(), PROMPTS, variant)
    cycle = terms.cycle_style + terms.cycle_content
    assert cycle > 0
    cycle.backward()
    assert all((mask.grad != 0).all() for mask in toy.masks)


def test_each_masked_cycle_teaches_one_mask_through_both_of_its_steps():
    """L_s makes and undoes the style, so MSE(I_cc, I_csc) reaches m_s only, with the chained derivative."""
    toy = Toy()
    terms = constyle(toy, epsilon_process(), *inputs(), PROMPTS, "masked")
    grad_c, grad_s = torch.autograd.grad(terms.cycle_style, toy.masks, allow_unused=True)
    assert grad_c is None or (grad_c == 0).all()
    step = 1e-2
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            toy.masks[1][0] += sign * step
            values.append(constyle(toy, epsilon_process(), *inputs(), PROMPTS, "masked").cycle_style)
            toy.masks[1][0] -= sign * step
    torch.testing.assert_close(grad_s[0], (values[0] - values[1]) / (2 * step), rtol=2e-2, atol=1e-6)


def test_teacher_cycle_has_the_gradient_of_the_slow_reference():
    toy = Toy()
    terms = constyle(toy, epsilon_process(), *inputs(), PROMPTS, "teacher")
    slow = slow_constyle(toy, epsilon_process(), *inputs(), "teacher")
    fast = torch.autograd.grad(terms.cycle_style, toy.masks)
    for one, two in zip(fast, torch.autograd.grad(slow[1], toy.masks), strict=True):
        torch.testing.assert_close(one, two)


def test_reconstruction_vanishes_where_the_student_is_both_teachers():
    toy = Toy()
    toy.loras = [toy.loras[0], tuple(torch.zeros_like(v) for v in toy.loras[1])]
    toy.masks = [torch.ones(RANK).requires_grad_(), toy.masks[1]]
    x_c, x_s, t, noise = inputs()
    assert constyle(toy, epsilon_process(), x_c, x_s, t, noise, PROMPTS, "none").reconstruction > 0
    toy.loras = [tuple(torch.zeros_like(v) for v in pair) for pair in toy.loras]
    terms = constyle(toy, epsilon_process(), x_c, x_s, t, noise, PROMPTS, "none")
    assert [v.item() for v in astuple_of(terms)] == [0, 0, 0]


def test_the_same_arguments_give_the_same_numbers():
    def value(seed=0):
        return constyle(Toy(), epsilon_process(), *inputs(seed), PROMPTS, "masked").cycle_style

    assert torch.equal(value(), value())
    assert not torch.isclose(value(), value(seed=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_is_built_while_evaluating(variant):
    toy = Toy()
    with torch.no_grad():
        terms = constyle(toy, epsilon_process(), *inputs(), PROMPTS, variant)
    assert not any(value.requires_grad for value in astuple_of(terms))
    assert not any(grad for _, grad in toy.calls)


def test_half_precision_predictions_are_compared_in_float32():
    toy = Toy()

    def half(*args):
        return toy(*args).bfloat16()

    terms = constyle(half, epsilon_process(), *inputs(), PROMPTS, "masked")
    assert all(value.dtype == torch.float32 for value in astuple_of(terms))


def test_what_lambda_cycle_multiplies():
    terms = ConstyleTerms(torch.tensor(4.0), torch.tensor(10.0), torch.tensor(30.0))
    prior = torch.tensor(7.0)
    assert overall(terms, prior, 0.1, 0.01, "all", "both").item() == pytest.approx(0.1 * 7 + 0.01 * (4 + 40))
    assert overall(terms, prior, 0.1, 0.01, "cycle", "both").item() == pytest.approx(0.1 * 7 + 4 + 0.01 * 40)
    both = [overall(terms, prior, 1.0, 1.0, multiplies, "both").item() for multiplies in ("all", "cycle")]
    assert both == [51, 51]


@pytest.mark.parametrize(("cycles", "counted"), [("both", 40), ("style", 10), ("content", 30)])
def test_which_cycles_count(cycles, counted):
    terms = ConstyleTerms(torch.tensor(4.0), cycle_style=torch.tensor(10.0), cycle_content=torch.tensor(30.0))
    assert overall(terms, torch.tensor(0.0), 1.0, 0.1, "all", cycles).item() == pytest.approx(0.1 * (4 + counted))
    assert overall(terms, torch.tensor(0.0), 1.0, 0.1, "cycle", cycles).item() == pytest.approx(4 + 0.1 * counted)
