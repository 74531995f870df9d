"""Patterns of module names: what Python's own engine says, in time that no pattern can draw out."""

import json
import random
import re
import time

import pytest
import torch

from duolora.lora.read.keys import adapter_from
from duolora.lora.read.peft_config import Matcher, PatternRefused

NAMES = [
    f"{block}.attentions.{layer}.transformer_blocks.{depth}.{part}"
    for block in ("down_blocks.1", "mid_block", "up_blocks.0")
    for layer in range(2)
    for depth in (0, 9)
    for part in ("attn1.to_q", "attn2.to_out.0", "ff.net.2")
]
PIECES = ["to_q", "attn1", "down_blocks", r"\.", ".*", r"\d+", "[0-9]", "[^_]", "(?:a|b|to_)", "(to_q|to_k)", "^", "$"]
PIECES += ["|", "q", "?", "+", "*", "*?", ".", "up_blocks.*", r"\w", "[a-m_.]", "ff.net"]
SLOW = [r"([\w.]+)+!", r"[\w.]?" * 60, "(a*)*(b*)*(c*)*!", r"(.*.*)*.*.*.*.*.*.*!", r"(\w|\w|.)+!", "(a|a)*(_|.)*!"]


def pefts(pattern: str, name: str) -> bool:
    """How PEFT applies a pattern to a module's name."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def test_random_patterns_fit_what_pefts_fit():
    rng, compared, fitted = random.Random(0), 0, 0
    for _ in range(3000):
        pattern = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
        try:
            matcher = Matcher([pattern])
        except PatternRefused:
            continue
        for name in (*rng.sample(NAMES, 3), "to_q"):
            expected = pefts(pattern, name)
            assert (matcher.first(name) == 0) == expected, (pattern, name)
            compared, fitted = compared + 1, fitted + expected
    assert compared > 5000
    assert 0.02 < fitted / compared < 0.98


def test_the_first_pattern_in_order_counts():
    matcher = Matcher(["to_k", "attn1.to_q", r"up_blocks.*to_q", ".*"])
    assert [matcher.first(name) for name in ("x.to_k", "x.attn1.to_q", "up_blocks.0.to_q", "y")] == [0, 1, 2, 3]
    assert Matcher([]).first("x") is None


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_takes_long(pattern):
    """Each would take Python's engine longer than the universe, or nearly."""
    started = time.process_time()
    matcher = Matcher([pattern])
    for name in NAMES:
        matcher.first(name)
    assert time.process_time() - started < 5


def test_a_file_whose_pattern_is_slow_elsewhere_is_read():
    module = f"unet.{NAMES[0]}"
    tensors = {f"{module}.lora_A.weight": torch.ones(4, 5), f"{module}.lora_B.weight": torch.ones(6, 4)}
    config = {"unet.lora_alpha": 2, "unet.alpha_pattern": {SLOW[0]: 4, r"[\w.]+": 8}}
    (lora,) = adapter_from(tensors, {"lora_adapter_metadata": json.dumps(config)}, "file").modules.values()
    assert lora.scale == 2


def test_a_pattern_for_each_layer_is_quick():
    """Diffusers' own converter writes such headers."""
    names = [name.replace(".0.", f".{k}.", 1) for name in NAMES for k in range(20)]
    matcher = Matcher(re.escape(name) for name in names)
    assert all(re.escape(name) == re.escape(names[matcher.first(name)]) for name in names)
