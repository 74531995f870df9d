"""Which networks a LoRA file can be for: one table, by the names of the layers that diffusers' networks have.

A file is recognised by its names alone, and by widths where two networks have the same names. Some files say too little
(the attention of a few blocks): then several families fit, the likeliest first. Two files are for one base where a
family fits both.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from duolora.errors import BaseMismatch
from duolora.lora.names import TEXT_ENCODERS, is_module

Shapes = Mapping[str, tuple[int, int]]
_ATTENTION = "to_[qkv]|to_out[.]0"
_JOINT = f"{_ATTENTION}|add_[qkv]_proj|to_add_out"
_FF = "net[.]0[.]proj|net[.]2"
_TIME = "(timestep|text|guidance)_embedder[.]linear_[12]"
_TIMES = "emb[.]timestep_embedder[.]linear_[12]|linear"
_NORMS = "norm1(_context)?[.]linear"
_DUAL = (
    rf"transformer_blocks[.]DOUBLE[.](attn[.]({_JOINT})|ff(_context)?[.]({_FF})|{_NORMS})|norm_out[.]linear"
    "|single_transformer_blocks[.]SINGLE[.](attn[.]to_[qkv]|proj_mlp|proj_out|norm[.]linear)|proj_out"
)


def _dual(double: str, single: str) -> str:
    """FLUX's blocks, as many as the numbers that fit these patterns."""
    return _DUAL.replace("DOUBLE", double).replace("SINGLE", single)


_REFINED = "(layers|noise_refiner|context_refiner)[.]N"


@dataclass(frozen=True)
class Family:
    """Networks whose LoRAs go by the same names."""

    loader: str
    """The class of diffusers that loads LoRAs into a pipeline of it."""
    modules: str
    """A pattern of the paths of its linear layers and convolutions; N is a number of up to three digits."""
    encoders: tuple[str, ...] = ()
    """Text encoders of which diffusers loads LoRAs, too."""
    widths: tuple[int, ...] = ()
    """Outputs of a query projection, in the sizes that are published; for where names do not tell families apart."""
    kohya: tuple[str, str] | None = None
    """What kohya's files say of it (`ss_base_model_version` and `modelspec.architecture`), if programs read those."""
    network: str = "transformer"
    """What the pipeline calls the network."""
    unless: str = ""
    """A likelier family that has the names of most of its files, too; where that one fits, it is that one."""


_CLIPS = ("text_encoder", "text_encoder_2")
FAMILIES: dict[str, Family] = {
    "SDXL": Family(
        "StableDiffusionXLLoraLoaderMixin", "", _CLIPS,
        kohya=("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"), network="unet",
    ),
    "SD 1.5": Family(
        "StableDiffusionLoraLoaderMixin", "", ("text_encoder",),
        kohya=("sd_v1", "stable-diffusion-v1/lora"), network="unet",
    ),
    "SD 2": Family(
        "StableDiffusionLoraLoaderMixin", "", ("text_encoder",),
        kohya=("sd_v2", "stable-diffusion-v2-512/lora"), network="unet",
    ),
    "FLUX.1": Family(
        "FluxLoraLoaderMixin",
        _dual("1?[0-9]", "[123]?[0-9]") + rf"|(time_text_embed|time_embed)[.]{_TIME}|(context|x)_embedder"
        r"|distilled_guidance_layer[.](in_proj|out_proj|layers[.]N[.]linear_[12])",
        ("text_encoder",), (3072,), ("flux1", "flux-1-dev/lora"),
    ),
    "FLUX.2": Family(
        "Flux2LoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn[.]({_JOINT})|ff(_context)?[.]linear_(in|out))|(context|x)_embedder"
        rf"|single_transformer_blocks[.]N[.]attn[.](to_qkv_mlp_proj|to_out)|time_guidance_embed[.]{_TIME}"
        r"|(double_stream_modulation_(img|txt)|single_stream_modulation|norm_out)[.]linear|proj_out",
        widths=(3072, 4096, 6144),
    ),
    "Qwen-Image": Family(
        "QwenImageLoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn[.]({_JOINT})|(img|txt)_mlp[.]({_FF})|(img|txt)_mod[.]1)"
        rf"|time_text_embed[.]{_TIME}|(img|txt)_in|norm_out[.]linear|proj_out",
        widths=(3072,), kohya=("qwen_image", "Qwen-Image/lora"),
    ),
    "Z-Image": Family(
        "ZImageLoraLoaderMixin",
        rf"{_REFINED}[.](attention[.]({_ATTENTION})|feed_forward[.]w[123]|adaLN_modulation[.]N)|cap_embedder[.]N"
        r"|all_x_embedder[.][\d-]+|all_final_layer[.][\d-]+[.](linear|adaLN_modulation[.]N)|t_embedder[.]mlp[.]N",
        widths=(3840,), kohya=("z_image", "Z-Image/lora"),
    ),
    "SD 3": Family(
        "SD3LoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn2?[.]({_JOINT})|ff(_context)?[.]({_FF})|norm1(_context)?[.]linear)"
        rf"|time_text_embed[.]{_TIME}|context_embedder|pos_embed[.]proj|norm_out[.]linear|proj_out",
        _CLIPS, (1536, 2432),
    ),
    "AuraFlow": Family(
        "AuraFlowLoraLoaderMixin",
        rf"(joint|single)_transformer_blocks[.]N[.](attn[.]({_JOINT})|norm1(_context)?[.]linear"
        r"|ff(_context)?[.](linear_[12]|out_projection))|time_step_proj[.]linear_[12]|(pos_embed|context_embedder)[.]?\w*"
        r"|norm_out[.]linear|proj_out",
        widths=(3072,),
    ),
    "HunyuanVideo": Family(
        "HunyuanVideoLoraLoaderMixin",
        _dual("N", "N") + rf"|(context_embedder[.])?time_text_embed[.]{_TIME}|context_embedder[.]proj_in"
        rf"|context_embedder[.]token_refiner[.]refiner_blocks[.]N[.](attn[.]({_ATTENTION})|ff[.]({_FF})|norm_out[.]linear)",
        widths=(3072,), unless="FLUX.1",
    ),
    "Sana": Family(
        "SanaLoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn[12][.]({_ATTENTION})|ff[.]conv_(inverted|depth|point))|time_embed[.]({_TIMES})"
        r"|caption_projection[.]linear_[12]|proj_out",
        widths=(1152, 2240),
    ),
    "LTX-Video": Family(
        "LTXVideoLoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn[12][.]({_ATTENTION})|ff[.]({_FF}))|time_embed[.]({_TIMES})"
        r"|caption_projection[.]linear_[12]|proj_(in|out)",
        widths=(2048, 4096),
    ),
    "CogVideoX": Family(
        "CogVideoXLoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn1[.]({_ATTENTION})|ff[.]({_FF})|norm[12][.]linear)|patch_embed[.](text_)?proj"
        r"|time_embedding[.]linear_[12]|norm_out[.]linear|proj_out",
        widths=(1920, 3072),
    ),
    "CogView 4": Family(
        "CogView4LoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn1[.]({_ATTENTION})|ff[.]({_FF})|norm1[.]linear)|patch_embed[.](text_)?proj"
        r"|time_condition_embed[.](timestep|condition)_embedder[.]linear_[12]|norm_out[.]linear|proj_out",
        widths=(4096,),
    ),
    "Mochi 1": Family(
        "Mochi1LoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn1[.]({_JOINT})|ff(_context)?[.]({_FF})|norm1(_context)?[.]linear(_1)?)"
        r"|time_embed[.](timestep_embedder[.]linear_[12]|pooler[.]to_(kv|q|out)|caption_proj)|norm_out[.]linear|proj_out",
        widths=(3072,),
    ),
    "Cosmos": Family(
        "CosmosLoraLoaderMixin",
        rf"transformer_blocks[.]N[.](attn[12][.]({_ATTENTION})|ff[.]({_FF})|norm[123][.]linear_[12])|patch_embed[.]proj"
        r"|time_embed[.]t_embedder[.]linear_[12]|norm_out[.]linear_[12]|proj_out",
        widths=(2048, 4096, 5120),
    ),
    "Lumina 2": Family(
        "Lumina2LoraLoaderMixin",
        rf"{_REFINED}[.](attn[.]({_ATTENTION})|feed_forward[.]linear_[123]|norm1[.]linear)|x_embedder"
        r"|time_caption_embed[.](timestep_embedder[.]linear_[12]|caption_embedder[.]1)|norm_out[.]linear_[12]",
        widths=(2304,),
    ),
    "Wan": Family(
        "WanLoraLoaderMixin",
        rf"blocks[.]N[.](attn[12][.]({_ATTENTION}|add_[kv]_proj)|ffn[.]({_FF}))|proj_out|condition_embedder[.]"
        r"((time|text)_embedder[.]linear_[12]|time_proj|image_embedder[.]ff[.]net[.](0[.]proj|2))",
        widths=(1536, 3072, 5120),
    ),
    "HiDream": Family(
        "HiDreamImageLoraLoaderMixin",
        r"(double|single)_stream_blocks[.]N[.]block[.](attn1[.]to_([qkv]|out)(_t)?|adaLN_modulation[.]1"
        r"|ff_[it][.]((experts[.]N|shared_experts)[.])?w[123])|caption_projection[.]N[.]linear|x_embedder[.]proj"
        r"|p_embedder[.]pooled_embedder[.]linear_[12]|t_embedder[.]timestep_embedder[.]linear_[12]"
        r"|final_layer[.](linear|adaLN_modulation[.]1)",
        widths=(2560,),
    ),
    "Kandinsky 5": Family(
        "KandinskyLoraLoaderMixin",
        r"(text|visual)_transformer_blocks[.]N[.]((self|cross)_attention[.](to_(query|key|value)|out_layer)"
        r"|feed_forward[.](in|out)_layer|(text|visual)_modulation[.]out_layer)"
        r"|(time|text|pooled_text|visual)_embeddings[.](in|out)_layer|out_layer[.](modulation[.])?out_layer",
        widths=(1792, 2560, 4096),
    ),
    "Krea 2": Family(
        "Krea2LoraLoaderMixin",
        rf"(text_fusion[.](layerwise|refiner)_blocks|transformer_blocks)[.]N[.]"
        rf"(attn[.]({_ATTENTION}|to_gate)|ff[.](gate|up|down))|img_in|(time_embed|txt_in)[.]linear_[12]|time_mod_proj"
        r"|text_fusion[.]projector|final_layer[.]linear",
        widths=(6144,),
    ),
    "ERNIE-Image": Family(
        "ErnieImageLoraLoaderMixin",
        rf"layers[.]N[.](self_attention[.]({_ATTENTION})|mlp[.](gate_proj|up_proj|linear_fc2))|text_proj"
        r"|time_embedding[.]linear_[12]|adaLN_modulation[.]1|final_norm[.]linear|final_linear",
        widths=(3072,),
    ),
}  # fmt: skip
"""By the names that people know them by; the likelier first."""
UNETS = tuple(name for name, family in FAMILIES.items() if family.network == "unet")
ATTENTION = re.compile(
    rf".+[._](?:attn\w*|attention|self_attention|cross_attention)[.](?:{_JOINT}|to_(?:gate|kv|query|key|value|qkv_mlp_proj)"
    r"|to_out|to_[qkv]_t|to_out_t|out_layer)"
)
"""The projections of an attention, in any family; of UNets it has no others than `PROJECTION` in `model`."""

_FLUX2_INPUTS = 128
"""Of its first layer; FLUX.1's has 64, and in control LoRAs 128."""
_FIRST_LEVEL = re.compile(r"down_blocks\.0\.attentions\.")
_FOURTH_LEVEL = re.compile(r"(?:down|up)_blocks\.3\.")
_ONLY_SDXL = re.compile(r"text_encoder_2\.|add_embedding\.|.*\.transformer_blocks\.[1-9]")
_TEXT_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
_WIDTHS = (320, 640, 1280)
_SAID = {
    "sd_v1": "SD 1.5", "stable-diffusion-v1": "SD 1.5", "sd_v2": "SD 2", "stable-diffusion-v2": "SD 2",
    "sdxl": "SDXL", "stable-diffusion-xl": "SDXL",
    "sd3": "SD 3", "stable-diffusion-3": "SD 3", "stable-diffusion-v3": "SD 3",
    "flux2": "FLUX.2", "flux.2": "FLUX.2", "flux-2": "FLUX.2", "flux": "FLUX.1",
    "qwen": "Qwen-Image", "z-image": "Z-Image", "z_image": "Z-Image",
}  # fmt: skip
"""How what a header says of its base begins, in small letters."""


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """What the modules of each transformer are called; compiled when it is first asked for, since that takes long."""
    named = {name: family.modules.replace("[.]N", r"[.]\d{1,3}") for name, family in FAMILIES.items()}
    return {name: re.compile(modules, re.ASCII) for name, modules in named.items() if modules}


def fitting(shapes: Shapes) -> tuple[str, ...]:
    """The families whose networks can have all these modules, the likeliest first; none where no family has them."""
    inside = {name: shape for name, shape in shapes.items() if name.partition(".")[0] not in TEXT_ENCODERS}
    spoken = {name.partition(".")[0] for name in shapes.keys() - inside.keys()}
    if all(map(is_module, shapes)):
        return _unets(shapes)
    found = [
        name
        for name, pattern in _patterns().items()
        if all(map(pattern.fullmatch, inside)) and spoken <= set(FAMILIES[name].encoders)
    ]
    found = [name for name in found if FAMILIES[name].unless not in found]
    if "FLUX.2" in found and inside.get("x_embedder", (0, 0))[1] == _FLUX2_INPUTS:
        found = ["FLUX.2"]
    queries = {
        d_out for name, (d_out, _) in inside.items() if name.endswith("attn.to_q") or name.endswith("attn1.to_q")
    }
    wide = [name for name in found if queries & set(FAMILIES[name].widths)]
    return tuple(wide or found)


def _unets(shapes: Shapes) -> tuple[str, ...]:
    """The same among UNets.

    Stable Diffusion 1 and 2 attend to text of width 768 or 1024, SDXL and similar UNets to 2048, from layers of the
    same widths. They have four levels, and attention of width 320 already on the first; SDXL has three, and attention
    from the second on. (Atelier has two, and narrower attention on both.)
    Only SDXL has a second text encoder, embeds sizes, and has several transformer blocks in an attention.
    """
    for name, (d_out, d_in) in shapes.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")) and d_in in _TEXT_WIDTHS and (d_in == 2048 or d_out in _WIDTHS):
            return (_TEXT_WIDTHS[d_in],)
    if any(map(_ONLY_SDXL.match, shapes)):
        return ("SDXL",)
    old = any(
        _FOURTH_LEVEL.match(name) or (_FIRST_LEVEL.match(name) and not set(shape).isdisjoint(_WIDTHS))
        for name, shape in shapes.items()
    )
    return ("SD 1.5", "SD 2") if old else UNETS


def narrowed(fits: tuple[str, ...], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Of the families that fit a file the one that its header names, if it names one of them."""
    texts = [metadata.get(key, "").lower() for key in ("ss_base_model_version", "modelspec.architecture")]
    said = [next((family for start, family in _SAID.items() if text.startswith(start)), "") for text in texts]
    return next(((family,) for family in sorted(said, key="SDXL".__ne__) if family in fits), fits)


def common(files: Iterable[tuple[object, tuple[str, ...]]]) -> tuple[str, ...]:
    """The families that fit all files, each given with those that fit it.

    Raises:
        BaseMismatch: there is none, so two of them are for different bases.
    """
    left: tuple[str, ...] | None = None
    first: object = None
    for file, fits in files:
        both = fits if left is None else tuple(name for name in left if name in fits)
        if left is not None and not both:
            raise BaseMismatch(
                f"{file} is a LoRA for {' or '.join(fits)}, and {first} for {' or '.join(left)}; LoRAs of different "
                "bases cannot be put together; give files that were trained on one"
            )
        left, first = both, file if first is None else first
    return left or ()
