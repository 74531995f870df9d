"""What ships inside: a pipeline that plain diffusers loads, and judges that can be trusted on what they judge."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from duolora.atelier.data import as_input
from duolora.atelier.recognisers import judge, load_recogniser
from duolora.atelier.report import GROUPS, accuracy, scenes_of
from duolora.atelier.scene import render
from duolora.networks.bases import load_base
from duolora.sampling import draw

WEIGHTS = Path(str(files("duolora.atelier").joinpath("weights")))


@pytest.fixture(scope="module")
def judges():
    return load_recogniser()


@pytest.fixture(scope="module")
def base():
    return load_base("atelier")


@pytest.fixture(scope="module", params=GROUPS)
def renders(request):
    import numpy as np

    scenes = scenes_of(*GROUPS[request.param], 120, seed=77_000)
    return as_input(np.stack([render(s) for s in scenes])), scenes


def test_files_can_travel():
    found = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert all(p.stat().st_size < 16_000_000 for p in found)
    assert {p.suffix for p in found} <= {".safetensors", ".json", ".txt"}


def test_plain_diffusers_loads_and_draws(base):
    pipeline = StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "base")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    image = pipeline("a red house in flat style", num_inference_steps=4, generator=generator, output_type="pt",
                     height=64, width=64).images[0]  # fmt: skip
    ours = draw(base, ["a red house in flat style"], [5], steps=4, guidance=5.0)[0]
    torch.testing.assert_close(image * 2 - 1, ours.clamp(-1, 1), rtol=0, atol=2e-2)


def test_tokenizer_takes_any_text(base):
    embeds = base.encode_prompts(["", "a sks <V1> thing", "é 漢字 🐟", "word " * 200]).embeds
    assert torch.isfinite(embeds).all()
    assert len({e.numpy().tobytes() for e in embeds}) == 4


def test_judges_know_what_they_judge(judges, renders):
    found = accuracy(judges, *renders)
    assert found.object >= 0.85
    assert found.look >= 0.9


def test_vae_keeps_what_the_judges_see(judges, base, renders):
    pictures, scenes = renders
    through = base.decode(base.encode_images(pictures)).clamp(-1, 1)
    before, after = accuracy(judges, pictures, scenes), accuracy(judges, through, scenes)
    assert after.object >= 0.85 * before.object
    assert after.look >= 0.85 * before.look


def test_verdict_counts_pictures_that_show_everything(judges, renders):
    pictures, _ = renders
    verdict = judge(judges, pictures[:10])
    shares = [verdict.share(object=o, look=k) for o, k in set(zip(verdict.object, verdict.look, strict=True))]
    assert sum(shares) == pytest.approx(1)
