"""Tiny networks of the published architectures with random weights, and images to show them."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from patterns import pattern
from recipes.atelier.architecture import save_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINO folder as transformers has it: a ViT without pooling layer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    ViTModel(ViTConfig(**SIZES, patch_size=16, image_size=224), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 folder."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("dinov2")
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    Dinov2Model(Dinov2Config(**sizes, patch_size=14, image_size=224)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder with both towers and a tokenizer."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = save_tokenizer(folder, ["cat", "house", "red"])
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    longest = tokenizer.model_max_length
    config = CLIPConfig(
        text_config=SIZES
        | ends
        | {"vocab_size": len(tokenizer), "max_position_embeddings": longest, "pad_token_id": 0},
        vision_config=SIZES | {"patch_size": 32, "image_size": 224},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of odd sizes."""
    folder = tmp_path_factory.mktemp("generated")
    for k, size in enumerate([(90, 61), (64, 64), (31, 47)]):
        pattern(*size, seed=k).save(folder / f"{k}.png")
    return folder
