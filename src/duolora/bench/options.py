"""What can be chosen for a benchmark; the command line and its help are made from these. Nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from duolora.model.defaults import BaseChoice
from duolora.options import option

Captions = Literal["class", "paper"]
BaseDtype = Literal["auto", "float32", "bfloat16", "float16", "float8", "nf4"]
Offload = Literal["auto", "none", "model", "sequential"]
Checkpointing = Literal["auto", "on", "off"]
SEED = 2**32 - 1
"""The largest."""


@dataclass(frozen=True)
class Settings:
    """How LoRAs are trained and images generated, where that is not as suits the base, and how the base is run."""

    training: Mapping[str, object] = field(default_factory=dict)
    """Fields of `TrainOptions`."""
    steps: int | None = None
    """Denoising steps of an image."""
    guidance: float | None = None
    resolution: int | None = None
    dtype: BaseDtype = "auto"
    loras: str = ""
    """A folder of finished LoRAs, which are taken instead of trained ones."""
    loras_mark: str = ""
    """A quick hash of what is in it."""
    device: str = "auto"
    offload: Offload = "auto"
    gradient_checkpointing: Checkpointing = "auto"

    def chosen(self, base: str) -> BaseChoice:
        """The base, run like this."""
        return BaseChoice(
            base, self.device, self.dtype, self.offload,
            gradient_checkpointing=self.gradient_checkpointing, resolution=self.resolution,
        )  # fmt: skip

    def sampling(self) -> dict[str, Any]:
        """What of sampling is chosen, by the names that samplers have for it."""
        known = {"steps": self.steps, "guidance": self.guidance}
        return {name: value for name, value in known.items() if value is not None}

    def said(self, *names: str) -> dict[str, object]:
        """What of these is chosen; without names, of all that changes a result."""
        names = names or ("training", "steps", "guidance", "resolution", "dtype", "loras_mark")
        found = asdict(self)
        return {name: found[name] for name in names if found[name] not in (None, "", "auto", {})}


PLAIN = Settings()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a table is run."""

    out: Path = option(Path("benchmarks/runs"), "Folder of all benchmarks; tables share what is in it.")
    workers: int | None = option(
        None, "Processes; by default one for each core, or for each GPU (eight on Atelier, which is small)."
    )
    ray: str | None = option(None, "Address of a Ray cluster that does the work; `local` for one on this machine.")
    as_json: bool = option(False, "Print one JSON object on stdout, and nothing else there.", flag="json")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How images are generated, and how a base is run."""

    sampling_steps: int | None = option(None, "Denoising steps of an image  [25].", least=1)
    guidance: float | None = option(None, "Classifier-free guidance; 1 is none  [the base's own].", least=0)
    resolution: int | None = option(None, "Height and width of images in pixels  [what the base was made for].")
    device: str = option("auto", "auto, cpu, cuda or mps.")
    base_dtype: BaseDtype = option(
        "auto", "What the base computes in: auto, float32, bfloat16 or float16; float8 and nf4 as for `duolora merge`."
    )
    offload: Offload = option(
        "auto", "auto, none, model (networks take turns on the device) or sequential (layers do: slow)."
    )
    gradient_checkpointing: Checkpointing = option(
        "auto",
        "on, off or auto: compute activations twice instead of keeping them  [auto: on GPUs of less than 20 GB].",
    )

    def settings(self, **more: Any) -> Settings:
        """What was chosen, and more."""
        return Settings(
            steps=self.sampling_steps, guidance=self.guidance, resolution=self.resolution, dtype=self.base_dtype,
            device=self.device, offload=self.offload, gradient_checkpointing=self.gradient_checkpointing, **more,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableOptions(SamplingOptions, RunOptions):
    """Which part of a table is run, on which pairs."""

    pairs: int | None = option(None, "Only the first so many pairs of each data set.", least=1)
    dataset: list[str] | None = option(None, "Only this data set; may be given several times.")
    row: list[str] | None = option(None, "Only this row; likewise.")
    seed: int = option(0, "Seed of merging and generating.", least=0, most=SEED)
    manifest: Path | None = option(None, "Other pairs than the shipped ones, as a JSON file.")
    sample: int | None = option(None, "Other pairs: those that the rule samples from this seed.")
    tuned: Path | None = option(
        None, "Each method at its best setting, too, in a row of its own: tuned.json of `bench tuning`."
    )
    blora: Path | None = option(None, "B-LoRA's blocks, as `bench figure3` writes them: blocks.json  [SDXL's two].")
    train: list[str] | None = option(
        None,
        "How the LoRAs are trained, as NAME=VALUE: rank=64, steps=1000, lr=5e-5, batch=1 and so on, by the names of "
        "`duolora train`; may be given several times  [as suits the base].",
    )


@dataclass(frozen=True, kw_only=True)
class DistilledOptions(TableOptions):
    """Table 5's."""

    steps: int = option(3000, "Training steps in which each smaller base is distilled.", least=1)


@dataclass(frozen=True, kw_only=True)
class PhotoOptions(TableOptions):
    """Those of a table that can be run on other bases and on photos."""

    base: str = option("atelier", "Atelier, or another base whose images its classifier knows; any base with --photos.")
    photos: list[Path] | None = option(
        None,
        "Pairs of photos, a file of `duolora datasets pairs`; one for each data set of the table. Rows that need true "
        "images of the subject in the style (oracle, PairCustomization) are left out without --twins.",
    )
    contents: list[Path] | None = option(
        None, "With --photos: the data set with the subjects; one for all, or one for each --photos."
    )
    styles: list[Path] | None = option(None, "With --photos: the data set with the styles, likewise; may be the same.")
    twins: Path | None = option(
        None, "With --photos: true images of each subject in each style, SUBJECT/STYLE/*, one for each photo of it."
    )
    loras: Path | None = option(
        None,
        "With --photos: a folder of finished LoRAs, contents/NAME.safetensors and styles/NAME.safetensors by the names "
        "of the data sets; nothing is trained then.",
    )
    captions: Captions = option(
        "class",
        "The LoRAs' captions, class ('a sks dog', 'a house in zwx style') or paper (the paper's: 'a sks object in vkt "
        "style', 'a ohw object in zwx style'; Atelier's word is thing).",
    )
    metrics: str = option("paper", "With --photos: what they are scored by, as in `duolora evaluate`.")
    checkpoint: list[str] | None = option(
        None, "With --photos: NAME=WHERE, another hub id, folder or file for dino, clip or csd."
    )


@dataclass(frozen=True, kw_only=True)
class Figure3Options(SamplingOptions):
    """What Figure 3 shows."""

    out: Path = option(Path("benchmarks/runs"), "Folder of all benchmarks.")
    base: str = option(
        "atelier", "The base to scale; without --prompt and --prompts one whose images Atelier's classifier knows."
    )
    prompt: list[str] | None = option(
        None,
        "Only images, of this prompt, such as the paper's 'A cat on a chair in the style of impressionism'; may be "
        "given several times.",
    )
    block: list[str] | None = option(
        None,
        "Turned down together, such as the paper's down_blocks.2, mid_block and up_blocks.0; may be given several "
        "times  [each group of blocks by itself].",
    )
    prompts: Path | None = option(
        None, "A text file with a prompt on each line, whose images encoders compare with those of the whole network."
    )
    content_encoder: str = option("dino", "With --prompts: how content is compared; on Atelier atelier-content, too.")
    style_encoder: str = option(
        "csd", "With --prompts: how style is compared, csd or clip; on Atelier atelier-style, too."
    )
    checkpoint: list[str] | None = option(None, "With --prompts: another hub id, folder or file for an encoder.")
    count: int = option(34, "Images for each block group and α, where they are measured.", least=1)
    seed: int = option(0, "The same seed gives the same images.", least=0, most=SEED)


@dataclass(frozen=True, kw_only=True)
class PaperOptions(SamplingOptions, RunOptions):
    """What is chosen for all tables and figures at once."""

    pairs: int | None = option(
        None, "Only the first so many pairs of each data set, and groups of subjects of Table 4.", least=1
    )
    seed: int = option(0, "Seed of merging and generating.", least=0, most=SEED)
    sample: int | None = option(None, "Other pairs: those that the rule samples from this seed.")
    tuned: Path | None = option(
        None,
        "Each method at its best setting, too, in a row of its own: tuned.json of `bench tuning`; not in Tables 7 "
        "to 9, whose rows differ by one option each.",
    )
    train: list[str] | None = option(None, "How the LoRAs are trained, as for `bench table1`  [as suits the base].")
    count: int = option(34, "Figure 3's images for each block group and α.", least=1)
    steps: int = option(3000, "Training steps in which each of Table 5's bases is distilled.", least=1)


@dataclass(frozen=True)
class Setting:
    """What speed is measured on."""

    base: str = option("atelier", "atelier, sdxl-small (100 M), sdxl-random, ssd-1b-random or vega-random.")
    rank: int = option(16, "Rank of each of the two LoRAs.", least=1)
    resolution: int | None = option(None, "Side of the images in pixels  [the base's own].")
    device: str = option("cpu", "cpu or cuda.")
    dtype: str | None = option(None, "float32, bfloat16 or float16  [cpu float32, else bfloat16].")
    width: int | None = option(None, "Channels of a random base  [its own], to try this out.")
    checkpointing: bool = option(False, "Compute activations twice instead of keeping them.")
    seed: int = option(0, "The same seed gives the same LoRAs and images.", least=0, most=SEED)


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Setting):
    """What `bench speed` measures, and how often."""

    out: Path = option(Path("benchmarks/speed"), "Folder for the results.")
    method: list[str] | None = option(None, "May be given several times  [all that are trained].")
    steps: int = option(3, "Training steps in each turn.", least=1)
    repeats: int = option(5, "Turns of each method.", least=1)
    dense_steps: int = option(1, "Steps of the dense reference in each turn; 0 is none.", least=0)
    memory: bool = option(True, "Measure peak memory, each in a process of its own.")
    quiet: bool = option(False, "No progress bars.")


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """What `bench growth` measures, and how often."""

    out: Path = option(Path("benchmarks/growth"), "Folder for the results.")
    base: str = option("sdxl-small", "As for `speed`; image size is varied on random bases only.")
    device: str = option("cpu", "cpu or cuda.")
    width: int | None = option(None, "Channels of a random base  [its own].")
    repeats: int = option(3, "Turns through all sizes.", least=1)
    memory: bool = option(True, "Measure peak memory, each in a process of its own.")
    seed: int = option(0, "The same seed gives the same LoRAs and images.", least=0, most=SEED)
    quiet: bool = option(False, "No progress bars.")
