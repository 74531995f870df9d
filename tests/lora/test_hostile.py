"""Hostile files: refused in one line that names the file, without a traceback, a hang, or memory beyond their size."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from damage import CASES
from duolora.cli.common import printable
from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.lora.read import peft_config
from duolora.lora.read.file import read_adapter
from duolora.lora.write.atomic import check_writable
from duolora.lora.write.file import write_adapter

MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SOUND = {
    "__metadata__": {"format": "pt"},
    f"{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    f"{MODULE}.lora_B.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [24, 56]},
}
DATA = struct.pack("<14f", *range(1, 15))


def laid(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(key: str = f"{MODULE}.lora_A.weight", **changes: object) -> dict[str, object]:
    return SOUND | {key: SOUND[key] | changes}


def renamed(old: str, new: str) -> dict[str, object]:
    return {key.replace(old, new): value for key, value in SOUND.items()}


ODD = ("F4", "F6_E2M3", "C64", "F8_E8M0")
TWICE = (
    json.dumps(SOUND)[:-1]
    + f', "{MODULE}.lora_A.weight": {{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}}}'
)
HOSTILE = {
    "empty": (b"", "expected at least 9 bytes, found 0"),
    "header larger than the file": (laid(SOUND, length=10_000), "its header: expected at most .* found 10000"),
    "header of exabytes": (laid(SOUND, length=1 << 62), "its header: expected at most"),
    "truncated header": (laid(SOUND)[:60], "its header: expected at most 52"),
    "header that is no JSON": (laid(b"{" * 99), "expected JSON"),
    "header of nested lists": (laid(b"[" * 100_000), "expected JSON"),
    "header that is a list": (laid([]), "expected an object, found list"),
    "header in no UTF-8": (laid(b'{"\xff": 1}'), "expected JSON"),
    "the same key twice": (laid(TWICE.encode()), "expected every key once, found .*lora_A.weight twice"),
    "truncated data": (laid(SOUND, DATA[:-1]), "expected two within 55 bytes"),
    "surplus data": (laid(SOUND, DATA + b"x"), "its data: expected 56 bytes as the header says, found 57"),
    "negative shape": (laid(changed(shape=[-2, -3])), r"shape: expected a few numbers from 0 on, found \[-2, -3\]"),
    "absurd shape": (laid(changed(shape=[1 << 50, 1 << 50])), "expected .* bytes for"),
    "shape of text": (laid(changed(shape="2x3")), "shape: expected"),
    "shape of true": (laid(changed(shape=[True, 6])), "shape: expected"),
    "another dtype's length": (laid(changed(dtype="F16")), r"expected 12 bytes for \[2, 3\], found 24"),
    "unknown dtype": (laid(changed(dtype="F33")), "dtype: expected one of F64, .*found 'F33'"),
    **{f"{kind} factor": (laid(changed(dtype=kind)), f"dtype: .*found '{kind}'") for kind in ODD},
    **{
        f"{kind} alpha": (
            laid(SOUND | {f"{MODULE}.alpha": {"dtype": kind, "shape": [], "data_offsets": [56, 57]}}, DATA + b"2"),
            f"alpha: dtype: .*found '{kind}'",
        )
        for kind in ODD
    },
    "dtype of a list": (laid(changed(dtype=["F32"])), r"dtype: .*found \['F32'\]"),
    "header of 11 MB": (
        laid(SOUND | {"__metadata__": {"x": "x" * 11_000_000}}),
        "its header: expected at most 10000000",
    ),
    "shape of a million numbers": (
        laid(changed(shape=[1] * 1_000_000)),
        r"shape: .*found \[1, 1, 1, 1, 1, 1, \.\.\.\];",
    ),
    "infinity by exponent": (
        laid(SOUND | {"__metadata__": {"duolora": '{"x": 1e400}'}}),
        "duolora in its header is not JSON",
    ),
    "no module of SDXL": (laid(renamed("down_blocks.1", "foo.bar")), "is not a module of SDXL's UNet"),
    "overlap": (laid(changed(data_offsets=[8, 32])), "expected its data to begin at byte 0, found 8"),
    "backward offsets": (laid(changed(data_offsets=[24, 0])), "data_offsets: expected two"),
    "entry without shape": (laid(SOUND | {f"{MODULE}.alpha": {}}), "expected dtype, shape and data_offsets"),
    "metadata of numbers": (laid(SOUND | {"__metadata__": {"a": 1}}), "__metadata__: expected texts"),
    "integers": (laid(changed(dtype="I32")), "lora_A.weight: expected float16, bfloat16 or float32, got torch.int32"),
    "NaN": (laid(SOUND, struct.pack("<14f", *[float("nan")] * 14)), "holds NaN or infinite"),
    "factors that don't fit": (laid(changed(shape=[3, 2])), r"expected up \(d_out, r\).*got \(4, 2\) and \(3, 2\)"),
    "no module of FLUX": (
        laid(renamed("unet.down_blocks.1", "transformer.single_transformer_blocks.1")),
        "is not a module of AuraFlow, .*FLUX.1",
    ),
    "DoRA": (laid(renamed("lora_B.weight", "dora_scale")), "makes it a DoRA"),
    "LoHa": (laid(renamed("lora_B.weight", "hada_w1_a")), "makes it a LoHa"),
    "LoKr": (laid(renamed("lora_B.weight", "lokr_w1")), "makes it a LoKr"),
    "checkpoint": (laid(renamed(MODULE, "model.diffusion_model.x")), "a whole model goes in as the base"),
    "long key": (laid(renamed("to_q", "to_q" * 200)), "has .* letters; expected at most"),
    "lone surrogate": (laid(renamed("to_q.lora_A", "\ud800.lora_A")), "."),
    **{
        f"pattern {pattern[:9]}": (
            laid(SOUND | {"__metadata__": {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {pattern: 1}})}}),
            message,
        )
        for pattern, message in {
            r"(?=(a+)+)\1b": r"'.*' has signs that trainers do not write; expected names",
            r"(a)\1": "has signs that trainers do not write",
            "a{2,9}": "has signs that trainers do not write",
            "a**": "has multiple repeat",
            "(" * 3000: "has too many groups within each other",
            "[a": "has unterminated character set at position 0",
            "[z-a]": "has bad character range z-a at position 1",
            "a)": "has unbalanced parenthesis at position 1",
            "a)|(a": "has unbalanced parenthesis at position 1",
            r"[\w.]?" * 9999 + r"\d": "too many ways to fit a name",
            "a" * 300_000: "more than 200000 letters",
        }.items()
    },
    "alphas that are a number": (
        laid(SOUND | {"__metadata__": {"lora_adapter_metadata": '{"unet.alpha_pattern": 4}'}}),
        "alpha_pattern: expected alphas under names, got 4",
    ),
    "huge alpha": (
        laid(SOUND | {"__metadata__": {"lora_adapter_metadata": f'{{"unet.lora_alpha": 1{"0" * 400}}}'}}),
        "expected finite numbers as alphas",
    ),
    "nested metadata": (
        laid(SOUND | {"__metadata__": {"duolora": "[" * 100_000}}),
        "duolora in its header is not JSON",
    ),
    "NaN in the metadata": (
        laid(SOUND | {"__metadata__": {"duolora": '{"x": NaN}'}}),
        "duolora in its header is not JSON",
    ),
}


def test_the_sound_file_is_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(laid(SOUND))
    (lora,) = read_adapter(tmp_path / "a.safetensors").modules.values()
    assert (lora.d_out, lora.rank, lora.d_in) == (4, 2, 3)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_and_say_why(tmp_path, case, monkeypatch):
    monkeypatch.setattr(peft_config, "_SECONDS", 0.5)
    data, message = HOSTILE[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileRefused, match=message) as caught:
        read_adapter(path)
    assert str(path) in str(caught.value)
    assert len(printable(str(caught.value)).splitlines()) == 1
    assert str(caught.value).count(";") >= 1, "the remedy comes after a semicolon"


def survives(path: Path, data: bytes) -> None:
    """Reading ends in an adapter, which can be written again, or in a refusal."""
    path.write_bytes(data)
    try:
        adapter = read_adapter(path)
        write_adapter(path.with_name("out.safetensors"), adapter, torch.float32)
    except DuoLoRAError as error:
        assert printable(str(error)).isprintable()


fuzz = settings(max_examples=CASES, deadline=20_000, suppress_health_check=list(HealthCheck), database=None)
scraps = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3)
)
stems = st.sampled_from(
    [MODULE, "lora_unet_input_blocks_4_1_proj_in", "lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.x",
     "x", "unet.foo.bar", "transformer.transformer_blocks.0.attn1.to_q",
     "unet.unet.mid_block.attentions.0.proj_in", "diffusion_model.middle_block.1.proj_in", "bundle_emb.a",
     "bundle_emb.a.clip_l", "bundle_emb.a.clip_g", "bundle_emb.\ud800.clip_l", "bundle_emb.\ud800.clip_g", ""]
)  # fmt: skip
sides = st.sampled_from(
    [".lora_A.weight", ".lora_B.weight", ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".alpha",
     ".lora.up.weight", ".dora_scale", ".lora_linear_layer.down.weight", ".processor.to_q_lora.up.weight", ""]
)  # fmt: skip
keys = st.one_of(st.builds(lambda a, b: a + b, stems, sides), st.text(max_size=12))
shapes = st.one_of(st.lists(st.integers(0, 4), max_size=5), scraps)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A header that mostly hangs together, over data of about the right length."""
    header: dict[str, object] = {}
    end = 0
    for key in draw(st.lists(keys, max_size=6, unique=True)):
        shape, dtype = draw(shapes), draw(st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "X", "F4", "C64"]))
        bits = {"F32": 4, "I64": 8, "F8_E4M3": 1}.get(dtype, 2)
        count = bits
        for size in shape if isinstance(shape, list) else []:
            count *= size if isinstance(size, int) and 0 <= size <= 4 else 0
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    if draw(st.booleans()):
        names = st.sampled_from(["lora_adapter_metadata", "duolora", "ss_base_model_version", "x"])
        config = st.dictionaries(
            st.sampled_from(["unet.r", "unet.lora_alpha", "alpha_pattern", "use_rslora"]), scraps, max_size=3
        )
        texts = st.one_of(st.text(max_size=20), config.map(json.dumps))
        header["__metadata__"] = draw(st.one_of(st.dictionaries(names, texts, max_size=3), scraps))
    if header and draw(st.integers(0, 4)) == 0:
        header[draw(st.sampled_from(sorted(header)))] = draw(scraps)
    data = draw(st.binary(min_size=end, max_size=end))
    return laid(header, data)


@fuzz
@given(files())
def test_random_headers_end_in_an_adapter_or_a_refusal(tmp_path_factory, data):
    survives(tmp_path_factory.getbasetemp() / "fuzz.safetensors", data)


@fuzz
@given(st.lists(st.tuples(st.integers(0, 8 * len(laid(SOUND)) - 1)), min_size=1, max_size=4), st.integers(0, 40))
def test_flipped_bits_and_lost_ends_end_in_an_adapter_or_a_refusal(tmp_path_factory, flips, lost):
    data = bytearray(laid(SOUND))
    for (bit,) in flips:
        data[bit // 8] ^= 1 << bit % 8
    survives(
        tmp_path_factory.getbasetemp() / "flips.safetensors", bytes(data[: len(data) - (lost if lost > 20 else 0)])
    )


def test_refusing_costs_no_more_memory_than_the_file_has_bytes(tmp_path):
    """A whole checkpoint given as a LoRA: its header is enough to refuse it, and none of its tensors is read."""
    size, path = 200_000_000, tmp_path / "model.safetensors"
    header = {"model.diffusion_model.x": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    tracemalloc.start()
    with pytest.raises(FileRefused, match="whole model"):
        read_adapter(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_refused_headers_are_echoed_shortly_and_parsed_cheaply(tmp_path):
    """A megabyte of empty objects takes 19 times as much memory: hence the limit of 10 MB."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(laid(b'{"a":[' + b"{}," * 50_000 + b"{}]}"))
    tracemalloc.start()
    with pytest.raises(FileRefused, match="expected dtype, shape and data_offsets") as caught:
        read_adapter(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(caught.value)) < 400 + len(str(path))
    assert peak < 30 * path.stat().st_size


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 250 + ".safetensors", "a\0b.safetensors"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(FileRefused, match="found nothing there"):
        read_adapter(tmp_path / name)
    with pytest.raises(InputError, match=r"at most 200 bytes|no folder to write into"):
        check_writable(tmp_path / name)


def test_places_that_cannot_be_written_to_are_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="got a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="ends in .safetensors"):
        check_writable(tmp_path / "a.bin")
    with pytest.raises(InputError, match="is no folder to write into"):
        check_writable(tmp_path / "a.safetensors" / "b.safetensors")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="found a read-only one"):
        check_writable(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is no folder to write into"):
        check_writable(tmp_path / "new" / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
