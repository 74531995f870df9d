"""Prior preservation: what stays is what the base says by itself, and a LoRA that is told so changes it less."""

from dataclasses import replace

import pytest
import torch

from duolora.api.train import TrainOptions, _lora, train
from duolora.atelier.captions import varied_captions
from duolora.atelier.objects import HELD_OUT_OBJECTS
from duolora.atelier.styles import HELD_OUT_STYLES
from duolora.errors import InputError
from duolora.lora.read.file import read_adapter
from duolora.model.mount import Mount
from duolora.model.predict import mounted_unet
from duolora.textfiles import read_lines
from duolora.training import prior_preservation
from duolora.training.prior_preservation import NOISE_LEVELS, class_images, class_predictions

pytestmark = pytest.mark.usefixtures("few_steps")
PROMPTS = ("a red house", "a zwx thing in sepia style", "a blue boat at night")


def told(base, adapter, prompts):
    """What the UNet says under a LoRA, or alone, about the images that stay."""
    stays = class_predictions(base, prompts)
    names = [prompts[int(k)] for k in stays.prompt]
    with Mount(base.unet, [adapter.modules], "rank", base.device) as mount, torch.no_grad():
        unet = mounted_unet(base, mount, prompts)
        own = mount.owned()
        return [unet.predict(stays.noisy, stays.t, names, row[None]) for row in (own[0], torch.zeros_like(own[0]))]


def test_what_stays_is_what_the_base_predicts(base, loras):
    stays = class_predictions(base, PROMPTS)
    assert len(stays.t) == NOISE_LEVELS * len(PROMPTS)
    assert sorted(set(stays.prompt.tolist())) == [0, 1, 2]
    torch.testing.assert_close(stays.predicted, told(base, read_adapter(loras[0]), PROMPTS)[1], rtol=1e-4, atol=1e-5)


def test_a_lora_changes_less_of_what_it_is_to_keep(base, photos, tmp_path):
    changes = []
    for keep in ((), PROMPTS):
        options = replace(TrainOptions(rank=4, steps=30, batch=2, lr=1e-2), class_prompts=keep)
        out = train(photos, "a sks cat", tmp_path / f"{len(keep)}.safetensors", base, options, progress=False)
        with_lora, alone = told(base, read_adapter(out.path), PROMPTS)
        changes.append(float((with_lora - alone).square().mean()))
    assert changes[1] < changes[0] / 2


def test_class_images_are_kept_from_run_to_run(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = class_images(base, PROMPTS, 0)
    monkeypatch.setattr(prior_preservation, "sample_images", lambda *_, **__: pytest.fail("they are generated again"))
    assert torch.equal(class_images(base, PROMPTS, 0), first)
    for others in ((PROMPTS[:2], 0), (PROMPTS, 1)):
        with pytest.raises(pytest.fail.Exception, match="generated again"):
            class_images(base, *others)


def test_few_sets_of_class_images_are_kept_and_a_damaged_one_is_made_again(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prior_preservation, "CACHED", 2)
    monkeypatch.setattr(
        prior_preservation, "sample_images", lambda base, prompts, *_, **__: torch.zeros(len(prompts), 3, 16, 16)
    )
    for seed in range(3):
        class_images(base, PROMPTS, seed)
    (damaged, _) = tmp_path.glob("duolora/class-images-1/*.safetensors")
    damaged.write_bytes(b"1234")
    assert all(class_images(base, PROMPTS, seed).isfinite().all() for seed in (1, 2))


def test_a_base_is_the_same_under_a_lora_of_pefts(base):
    alone = base.weights_hash()
    with _lora(base, TrainOptions(rank=2)):
        assert base.weights_hash() == alone


def test_captions_of_what_stays_tell_nothing_of_what_is_personalised():
    captions = varied_captions(60)
    assert len(set(captions)) == 60
    assert not [c for c in captions for name in (*HELD_OUT_OBJECTS, *HELD_OUT_STYLES) if name in c]
    assert varied_captions(60) == captions != varied_captions(60, seed=1)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    (tmp_path / "keep.txt").write_text("a red house\n\n a cat in sepia style \n", "utf-8")
    assert read_lines(tmp_path / "keep.txt") == ("a red house", "a cat in sepia style")
    (tmp_path / "keep.txt").write_text("a red house\n", "utf-8-sig")
    assert read_lines(tmp_path / "keep.txt") == ("a red house",)
    (tmp_path / "none.txt").touch()
    assert read_lines(tmp_path / "none.txt") == ()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    for name in ("image.png", "missing.txt"):
        with pytest.raises(InputError, match=name):
            read_lines(tmp_path / name)
