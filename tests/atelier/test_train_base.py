"""The base's recipe: starting from another pipeline's weights."""

import pytest
import torch
from safetensors.torch import save_file

from duolora.atelier.architecture import save_tokenizer
from duolora.atelier.train_base import TextToImage, take_weights


@pytest.fixture
def pipeline(tmp_path):
    """A folder with the weights of an untrained base that knows two words."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer", ["house", "red"])
    model = TextToImage(tokenizer)
    for name, network in model.named_children():
        (tmp_path / name).mkdir()
        weights = "diffusion_pytorch_model" if name == "unet" else "model"
        save_file(network.state_dict(), tmp_path / name / f"{weights}.safetensors")
    return tmp_path, tokenizer, model


def test_weights_are_taken_and_words_matched_by_their_spelling(pipeline, tmp_path):
    folder, old_words, old = pipeline
    words = save_tokenizer(tmp_path / "new", ["blue", "house", "red"])
    model = TextToImage(words)
    fresh = {w: model.text_encoder.get_input_embeddings().weight[i].clone() for w, i in words.get_vocab().items()}
    take_weights(model, words, folder)
    for key, value in old.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[key], value)
    for name in ("text_encoder", "text_encoder_2"):
        mine, theirs = (getattr(m, name).get_input_embeddings().weight for m in (model, old))
        for word in ("house</w>", "red</w>", "<|endoftext|>", "q"):
            assert torch.equal(mine[words.get_vocab()[word]], theirs[old_words.get_vocab()[word]])
    blue = words.get_vocab()["blue</w>"]
    assert torch.equal(model.text_encoder.get_input_embeddings().weight[blue], fresh["blue</w>"])


def test_another_architecture_is_refused(pipeline, tmp_path):
    folder, words, model = pipeline
    state = {k: v[..., :1].contiguous() if v.ndim == 2 else v for k, v in model.unet.state_dict().items()}
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_weights(TextToImage(words), words, folder)
