"""A pipeline with SDXL's parts and names, tiny and built from configs: no downloads, no trained weights."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from duolora.model.architectures import unet_config
from duolora.paper.lowrank import LowRank
from recipes.atelier.architecture import save_tokenizer

TEXT_WIDTHS = (24, 32)
TIME_WIDTH = 8


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """An SDXL-shaped UNet of three levels; `changes` go into its config."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": sum(TEXT_WIDTHS),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + TEXT_WIDTHS[1],
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config | changes).eval().requires_grad_(False)


def tiny_inputs(batch: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of one call of `tiny_unet`."""
    rng = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, 5, sum(TEXT_WIDTHS), generator=rng).to(dtype)
    pooled = torch.randn(batch, TEXT_WIDTHS[1], generator=rng).to(dtype)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=rng).to(dtype),
        "timestep": torch.randint(1000, (batch,), generator=rng),
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * batch)},
        "return_dict": False,
    }


def random_adapter(
    unet: UNet2DConditionModel, names: list[str], rank: int = 4, seed: int = 1, scale: float = 0.5
) -> dict[str, LowRank]:
    """An adapter with random factors, strong enough to be seen in the output."""
    rng = torch.Generator().manual_seed(seed)
    adapter = {}
    for name in names:
        d_out, d_in = unet.get_submodule(name).weight.shape
        up, down = torch.randn(d_out, rank, generator=rng), torch.randn(rank, d_in, generator=rng)
        adapter[name] = LowRank(up * d_out**-0.5, down * d_in**-0.5, scale)
    return adapter


def narrow_unet(architecture: str) -> UNet2DConditionModel:
    """A UNet of an exact architecture, narrow, for the text encoders of `tiny_pipeline`."""
    width = sum(TEXT_WIDTHS) // 4
    return tiny_unet(
        **unet_config(architecture, width) | {"projection_class_embeddings_input_dim": 6 * width + TEXT_WIDTHS[1]}
    )


def tiny_pipeline(
    folder: Path, unet: UNet2DConditionModel | None = None, **scheduler: Any
) -> StableDiffusionXLPipeline:
    """A whole pipeline; its tokenizers are written into `folder`, `scheduler` goes into the scheduler's config."""
    unet = unet or tiny_unet()
    torch.manual_seed(0)
    tokenizers = [save_tokenizer(folder / name, ["cat", "house", "in"]) for name in ("tokenizer", "tokenizer_2")]
    shared = {
        "vocab_size": len(tokenizers[0]),
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": tokenizers[0].model_max_length,
        "bos_token_id": tokenizers[0].bos_token_id,
        "eos_token_id": tokenizers[0].eos_token_id,
        "pad_token_id": tokenizers[0].pad_token_id,
    }
    first, second = (
        CLIPTextConfig(hidden_size=w, intermediate_size=2 * w, projection_dim=w, **shared) for w in TEXT_WIDTHS
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
        sample_size=16,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", **scheduler
        ),
    )


def tiny_sd15(folder: Path) -> StableDiffusionPipeline:
    """A pipeline with Stable Diffusion 1.5's parts and levels; its tokenizer is written into `folder`."""
    unet = tiny_unet(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 32, 64, 64), attention_head_dim=4, transformer_layers_per_block=1,
        cross_attention_dim=TEXT_WIDTHS[0], use_linear_projection=False, addition_embed_type=None,
        addition_time_embed_dim=None, projection_class_embeddings_input_dim=None,
    )  # fmt: skip
    parts = tiny_pipeline(folder, unet)
    return StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=unet, scheduler=parts.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def tiny_flux(folder: Path) -> FluxPipeline:
    """A pipeline with FLUX.1's parts; its tokenizers are written into `folder`."""
    parts = tiny_pipeline(folder)
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=len(parts.tokenizer_2), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=TEXT_WIDTHS[0], guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    parts.vae.register_to_config(shift_factor=0.1)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.0, max_shift=0.0),
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
        text_encoder_2=T5EncoderModel(t5).eval(), tokenizer_2=parts.tokenizer_2,
        transformer=transformer.eval().requires_grad_(False),
    )  # fmt: skip


def tiny_sd3(folder: Path) -> StableDiffusion3Pipeline:
    """A pipeline with Stable Diffusion 3.5's parts; its tokenizers are written into `folder`."""
    parts = tiny_pipeline(folder)
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=len(parts.tokenizer_2), d_model=64, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=16,
        pooled_projection_dim=sum(TEXT_WIDTHS), pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    parts.vae.register_to_config(shift_factor=0.1)
    first = CLIPTextModelWithProjection(parts.text_encoder.config)
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=parts.vae, text_encoder=first.eval(),
        tokenizer=parts.tokenizer, text_encoder_2=parts.text_encoder_2, tokenizer_2=parts.tokenizer_2,
        text_encoder_3=T5EncoderModel(t5).eval(), tokenizer_3=parts.tokenizer_2,
        transformer=transformer.eval().requires_grad_(False),
    )  # fmt: skip


def tiny_z_image(folder: Path) -> ZImagePipeline:
    """A pipeline with Z-Image's parts; its tokenizer is written into `folder`."""
    parts = tiny_pipeline(folder)
    torch.manual_seed(0)
    parts.vae.register_to_config(shift_factor=0.1)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 2, 4], axes_lens=[640, 8, 8],
    )  # fmt: skip
    words = Qwen3Config(**_language(parts.tokenizer), head_dim=8)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=parts.vae, text_encoder=Qwen3Model(words).eval(),
        tokenizer=parts.tokenizer, transformer=transformer.eval().requires_grad_(False),
    )  # fmt: skip


def tiny_qwen_image(folder: Path) -> QwenImagePipeline:
    """A pipeline with Qwen-Image's parts; its tokenizer is written into `folder`."""
    tokenizer = save_tokenizer(folder / "tokenizer", ["cat", "house", "in"])
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[2.0, 1.5, 1.0, 3.0],
    )  # fmt: skip
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    words = Qwen2_5_VLConfig(
        text_config=_language(tokenizer) | {"rope_parameters": rope},
        vision_config=sight | {"fullatt_block_indexes": [0]},
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.0, max_shift=0.0),
        vae=vae.eval(), text_encoder=Qwen2_5_VLForConditionalGeneration(words).eval(), tokenizer=tokenizer,
        transformer=transformer.eval().requires_grad_(False),
    )  # fmt: skip


def _language(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The config of a small language model for this tokenizer, which is taught to word a chat."""
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %} assistant"
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def save_single_file(pipeline: StableDiffusionXLPipeline | StableDiffusionPipeline, path: Path) -> Path:
    """Write the pipeline as one .safetensors file with the key names of SDXL's or Stable Diffusion's original code."""
    step, unet = pipeline.unet.config.layers_per_block + 1, pipeline.unet.state_dict()
    names = original_unet_keys(unet, step)
    tensors = {f"model.diffusion_model.{name}": v for name, v in zip(names, unet.values(), strict=True)}
    last = len(pipeline.vae.config.block_out_channels) - 1
    tensors |= {f"first_stage_model.{_vae_key(k, last)}": _as_conv(k, v) for k, v in pipeline.vae.state_dict().items()}
    first, second = pipeline.text_encoder.state_dict(), getattr(pipeline, "text_encoder_2", None)
    place = "conditioner.embedders.0" if second is not None else "cond_stage_model"
    tensors |= {f"{place}.transformer.text_model.{_bare(k)}": v for k, v in first.items()}
    if second is not None:
        original = _open_clip({_bare(k): v for k, v in second.state_dict().items()})
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in original.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def _bare(key: str) -> str:
    return key.removeprefix("text_model.")


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet_keys(keys: Collection[str], step: int) -> list[str]:
    """The original names of the weights of a whole UNet, with `step` numbers for each level."""
    attended = {key.partition(".attentions.")[0] for key in keys if ".attentions." in key}
    return [_unet_key(key, step, attended) for key in keys]


def _unet_key(key: str, step: int, attended: set[str]) -> str:
    """The original name of a weight of a UNet with attention in these blocks, and `step` numbers for each level."""
    stem, _, leaf = key.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{leaf}"
    block, _, rest = key.replace("mid_block", "mid_block.0").partition(".")
    level, kind, layer, tail = re.fullmatch(r"(\d+)\.(\w+)\.(\d+)\.(.*)", rest).groups()
    if kind == "resnets":
        part, _, leaf = tail.partition(".")
        tail = f"{_RESNET[part]}.{leaf}"
    if block == "mid_block":
        return f"middle_block.{2 * int(layer) if kind == 'resnets' else 1}.{tail}"
    if kind == "downsamplers":
        return f"input_blocks.{step * int(level) + step}.0.op.{tail.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{step * (int(level) + 1) - 1}.{1 + (f'{block}.{level}' in attended)}.{tail}"
    number = step * int(level) + int(layer) + (block == "down_blocks")
    return f"{'input' if block == 'down_blocks' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{tail}"


def _vae_key(key: str, last: int) -> str:
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for new, old in names.items():
        key = key.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def _as_conv(key: str, value: Tensor) -> Tensor:
    """The original attention of the VAE is made of 1×1 convolutions."""
    return value[:, :, None, None] if ".attentions." in key and value.ndim == 2 else value


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the second text encoder in OpenCLIP's names, with q, k and v in one matrix."""
    out = {
        "text_projection": state["text_projection.weight"].T,
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for layer in {k.split(".")[2] for k in state if k.startswith("encoder.layers.")}:
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            out |= {f"{new}{there}.{leaf}": state[f"{old}{here}.{leaf}"] for here, there in names.items()}
            out[f"{new}attn.in_proj_{leaf}"] = torch.cat([state[f"{old}self_attn.{p}_proj.{leaf}"] for p in "qkv"])
    return out


_MODULATION = "adaLN_modulation.1"
_JOINT = [
    (rf"transformer_blocks\.(\d+)\.{here}", rf"joint_blocks.\1.{there}")
    for here, there in {
        r"(attn2?)\.to_out\.0": r"x_block.\2.proj", r"attn\.to_add_out": "context_block.attn.proj",
        r"(attn2?)\.norm_([qk])": r"x_block.\2.ln_\3", r"attn\.norm_added_([qk])": r"context_block.attn.ln_\2",
        r"(attn2?)\.to_qkv": r"x_block.\2.qkv", r"attn\.add_qkv": "context_block.attn.qkv",
        r"norm1\.linear": f"x_block.{_MODULATION}", r"norm1_context\.linear": f"context_block.{_MODULATION}",
        r"ff\.net\.0\.proj": "x_block.mlp.fc1", r"ff\.net\.2": "x_block.mlp.fc2",
        r"ff_context\.net\.0\.proj": "context_block.mlp.fc1", r"ff_context\.net\.2": "context_block.mlp.fc2",
    }.items()
]  # fmt: skip
_DOUBLE = [
    (rf"^transformer_blocks\.(\d+)\.{here}", rf"double_blocks.\1.{there}")
    for here, there in {
        r"attn\.to_out\.0": "img_attn.proj", r"attn\.to_add_out": "txt_attn.proj",
        r"attn\.norm_q\.weight": "img_attn.norm.query_norm.scale",
        r"attn\.norm_k\.weight": "img_attn.norm.key_norm.scale",
        r"attn\.norm_added_q\.weight": "txt_attn.norm.query_norm.scale",
        r"attn\.norm_added_k\.weight": "txt_attn.norm.key_norm.scale",
        r"attn\.to_qkv": "img_attn.qkv", r"attn\.add_qkv": "txt_attn.qkv",
        r"norm1\.linear": "img_mod.lin", r"norm1_context\.linear": "txt_mod.lin",
        r"ff\.net\.(\d)(\.proj)?": r"img_mlp.\2", r"ff_context\.net\.(\d)(\.proj)?": r"txt_mlp.\2",
    }.items()
]  # fmt: skip
_SINGLE = [
    (rf"single_transformer_blocks\.(\d+)\.{here}", rf"single_blocks.\1.{there}")
    for here, there in {
        r"attn\.to_qkv": "linear1", r"proj_out": "linear2", r"norm\.linear": "modulation.lin",
        r"attn\.norm_q\.weight": "norm.query_norm.scale", r"attn\.norm_k\.weight": "norm.key_norm.scale",
    }.items()
]  # fmt: skip
_FINAL = [(r"norm_out\.linear", f"final_layer.{_MODULATION}"), (r"^proj_out", "final_layer.linear")]


def _times(first: str, second: str, **names: str) -> list[tuple[str, str]]:
    """Embedders of two layers each."""
    place = r"time_text_embed\.{}_embedder\.linear_{}"
    return [
        (place.format(name, k), f"{there}{layer}")
        for name, there in names.items()
        for k, layer in ((1, first), (2, second))
    ]


ORIGINAL: dict[str, list[tuple[str, str]]] = {
    "FLUX.1": [
        *_DOUBLE, *_SINGLE, *_FINAL, ("context_embedder", "txt_in"), ("x_embedder", "img_in"),
        *_times("in_layer", "out_layer", timestep="time_in.", text="vector_in.", guidance="guidance_in."),
    ],
    "SD 3": [
        *_JOINT, *_FINAL, (r"pos_embed\.pos_embed", "pos_embed"), (r"pos_embed\.proj", "x_embedder.proj"),
        *_times("0", "2", timestep="t_embedder.mlp.", text="y_embedder.mlp."),
    ],
    "Z-Image": [
        (r"attention\.to_qkv", "attention.qkv"), (r"attention\.to_out\.0", "attention.out"),
        (r"attention\.norm_([qk])", r"attention.\1_norm"), (r"all_(final_layer|x_embedder)\.2-1\.", r"\1."),
    ],
}  # fmt: skip
"""How the original code names the weights of transformers, instead of diffusers' names; Qwen-Image's are the same."""


def original_transformer(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's weights as its original code, and ComfyUI, have them in a file."""
    if family == "Qwen-Image":
        return dict(state)
    found: dict[str, Tensor] = {}
    scales = [key for key in state if key.startswith("norm_out.linear.")]
    blocks = [int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks.")]
    if family == "SD 3":
        scales += [f"transformer_blocks.{max(blocks)}.norm1_context.linear.{leaf}" for leaf in ("weight", "bias")]
    for key, value in state.items():
        if key in scales:
            value = torch.cat(value.chunk(2)[::-1])
        if (side := re.search(r"\.(to|add)_[qkv](?=[._])", key)) is not None:
            if "_q" not in side[0]:
                continue
            parts = [state[key.replace(side[0], side[0][:-1] + letter)] for letter in "qkv"]
            if (mlp := key.replace("attn.to_q", "proj_mlp")) != key and mlp in state:
                parts.append(state[mlp])
            key, value = key.replace(side[0], side[0][:-1] + "qkv").replace("add_qkv_proj", "add_qkv"), torch.cat(parts)
        if ".proj_mlp." in key:
            continue
        for here, there in ORIGINAL[family]:
            key = re.sub(here, there, key)
        found[key] = value
    return found
