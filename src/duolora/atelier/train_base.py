"""The text-to-image base: an SDXL-shaped UNet and two text encoders, trained together on captioned scenes."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from duolora.atelier.architecture import new_scheduler, new_text_encoders, new_unet, save_tokenizer
from duolora.atelier.captions import plain_caption
from duolora.atelier.data import Pixels, as_input, base_picture, cache_path, made
from duolora.atelier.looks import BASE_LOOKS
from duolora.atelier.made_by import vae_hash, weights_of, write_provenance
from duolora.atelier.objects import BASE_OBJECTS
from duolora.atelier.scene import SIZE
from duolora.training.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint, step_generator


@dataclass(frozen=True)
class BaseRecipe:
    """How a base is trained from nothing. The shipped one had several stretches: see `weights/provenance.json`."""

    pictures: int = 64_000
    updates: int = 12_000
    batch: int = 32
    lr: float = 1e-3
    unconditional: float = 0.1
    noisy: float = 1.5
    """1 draws timesteps evenly; more favours the noisy ones, at which shapes are decided."""
    seed: int = 2


class TextToImage(nn.Module):
    """UNet and text encoders as one module, so that they train and average together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = new_unet()
        encoders = new_text_encoders(tokenizer)
        self.text_encoder: CLIPTextModel = encoders[0]
        self.text_encoder_2: CLIPTextModelWithProjection = encoders[1]

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt embeddings (n, tokens, width) and pooled vector (n, width), as SDXL's pipeline makes them."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, dropped: Tensor) -> Tensor:
        """The predicted velocity; prompts with `dropped` are zeros, as SDXL's pipeline has for an empty prompt."""
        embeds, pooled = self.encode(tokens)
        kept = (~dropped).to(embeds.dtype)[:, None]
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], device=noisy.device).expand(len(noisy), -1)
        condition = {"text_embeds": pooled * kept, "time_ids": time_ids.to(embeds.dtype)}
        return self.unet(noisy, timesteps, embeds * kept[..., None], added_cond_kwargs=condition).sample


def vocabulary(texts: Iterable[str]) -> list[str]:
    """All words of the texts, sorted."""
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Pixels, device: torch.device) -> Tensor:
    """Scaled latents of all pictures, fp16 on the CPU, (n, 8, 16, 16)."""
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    chunks = tqdm(range(0, len(pixels), 128), desc="Encoding", unit="×128")
    done = [vae.encode(as_input(pixels[i : i + 128]).to(device)).latent_dist.mean.half().cpu() for i in chunks]
    return (torch.cat(done) * vae.config.scaling_factor).contiguous()


def _kept_latents(folder: Path, kept: Path, pixels: Pixels, device: torch.device) -> Tensor:
    """The pictures' latents, encoded once and kept in the file `kept`."""
    if not kept.exists():
        part = kept.with_suffix(".part")
        save_file({"latents": latents_of(AutoencoderKL.from_pretrained(folder / "vae"), pixels, device)}, part)
        part.replace(kept)
    return load_file(kept)["latents"]


def _latents_path(folder: Path, recipe: BaseRecipe) -> Path:
    """Where the latents are kept; another renderer, recipe's pictures or VAE has another name."""
    cache = cache_path(folder, "base-pictures", recipe.pictures, recipe.seed)
    return folder / f"{cache.name}-latents-{vae_hash(folder)[:12]}.safetensors"


def _prepared(folder: Path, recipe: BaseRecipe, device: torch.device) -> tuple[CLIPTokenizer, Tensor, Tensor]:
    """The tokenizer, the latents and the tokens of all pictures."""
    cache = cache_path(folder, "base-pictures", recipe.pictures, recipe.seed)
    pixels, texts = made(base_picture, recipe.pictures, recipe.seed, cache)
    known = [plain_caption(kind, look=look) for kind in BASE_OBJECTS for look in BASE_LOOKS]
    plain = [t for t in texts[:4000] if " " in t]
    counts = {w: sum(w in t.split() for t in plain) for w in vocabulary(plain)}
    words = sorted({w for w, n in counts.items() if n > 3} | set(vocabulary(known)))
    tokenizer = save_tokenizer(folder / "tokenizer", words)
    latents = _kept_latents(folder, _latents_path(folder, recipe), pixels, device)
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokenizer, latents, tokens


def take_weights(model: TextToImage, tokenizer: CLIPTokenizer, pipeline: Path) -> None:
    """Copy the networks of a pipeline folder of the same architecture; words are matched by their spelling."""
    words = CLIPTokenizer.from_pretrained(pipeline / "tokenizer").get_vocab()
    known = [(row, words[word]) for word, row in tokenizer.get_vocab().items() if word in words]
    ours, theirs = (torch.tensor(rows) for rows in zip(*known, strict=True))
    for name, network in model.named_children():
        weights = "diffusion_pytorch_model" if name == "unet" else "model"
        state = {k: v.float() for k, v in load_file(pipeline / name / f"{weights}.safetensors").items()}
        for key, value in network.state_dict().items():
            if key.endswith("token_embedding.weight"):
                state[key] = value.index_copy(0, ours, state[key][theirs])
        network.load_state_dict(state)


def train_base(folder: Path, recipe: BaseRecipe, device: torch.device, start_from: Path | None = None) -> Path:
    """Train UNet and text encoders on the VAE in `folder`; returns the pipeline.

    Goes on from the checkpoint of this very recipe, pictures, VAE and start if there is one, else from the weights of
    the pipeline `start_from`, else from nothing.
    """
    tokenizer, latents, tokens = _prepared(folder, recipe, device)
    torch.manual_seed(recipe.seed)
    model = TextToImage(tokenizer)
    if start_from:
        take_weights(model, tokenizer, start_from)
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.996))
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    alphas = new_scheduler().alphas_cumprod.to(device)
    parent = None if start_from is None else weights_of(start_from)
    mark = {"latents": _latents_path(folder, recipe).name, "start_from": parent}
    checkpoint = checkpoint_path(folder / "base", asdict(recipe) | mark)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    start = load_checkpoint(checkpoint, tensors, optimiser) if checkpoint.exists() else 0
    bar = tqdm(range(start, recipe.updates), desc="Base", initial=start, total=recipe.updates, mininterval=5)
    for step in bar:
        rng = step_generator(recipe.seed, step)
        rows = torch.randint(len(latents), (recipe.batch,), generator=rng)
        spread = (torch.rand(1, generator=rng) + torch.arange(recipe.batch) / recipe.batch) % 1
        spread = 1 - spread**recipe.noisy
        noise = torch.randn((recipe.batch, *latents.shape[1:]), generator=rng).to(device)
        dropped = (torch.rand(recipe.batch, generator=rng) < recipe.unconditional).to(device)
        timesteps = (spread * len(alphas)).long().clamp(max=len(alphas) - 1).to(device)
        clean = latents[rows].float().to(device)
        signal, spoil = (a[timesteps, None, None, None] for a in (alphas.sqrt(), (1 - alphas).sqrt()))
        predicted = model(signal * clean + spoil * noise, timesteps, tokens[rows].to(device), dropped)
        loss = F.mse_loss(predicted, signal * noise - spoil * clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        left = 1 - step / recipe.updates
        optimiser.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 200) * min(1, max(0.02, 2 * left))
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(model)
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 500 == 0 or step + 1 == recipe.updates:
            save_checkpoint(checkpoint, tensors, optimiser, step + 1)
            save_pipeline(cast(TextToImage, average.module), tokenizer, folder)
    path = save_pipeline(cast(TextToImage, average.module), tokenizer, folder)
    write_provenance(folder, "base", recipe, start_from=parent)
    return path


def save_pipeline(model: TextToImage, tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Write the averaged networks as one diffusers pipeline folder in fp16."""
    parts = TextToImage(tokenizer)
    parts.load_state_dict(model.state_dict())
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=parts.unet,
        scheduler=new_scheduler(),
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder / "base", safe_serialization=True)
    for name in (
        "text_encoder",
        "text_encoder_2",
    ):  # transformers would load what is stored as fp16 beside an fp32 UNet
        config = folder / "base" / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2))
    return folder / "base"
