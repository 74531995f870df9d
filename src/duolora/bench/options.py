"""What can be chosen for a benchmark; the command line and its help are made from these. Nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from duolora.options import option

Captions = Literal["class", "paper"]
SEED = 2**32 - 1
"""The largest."""


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
class TableOptions(RunOptions):
    """Which part of a table is run, on which pairs."""

    pairs: int | None = option(None, "Only the first so many pairs of each data set.", least=1)
    dataset: list[str] | None = option(None, "Only this data set; may be given several times.")
    row: list[str] | None = option(None, "Only this row; likewise.")
    seed: int = option(0, "Seed of merging and generating.", least=0, most=SEED)
    manifest: Path | None = option(None, "Other pairs than the shipped ones, as a JSON file.")
    sample: int | None = option(None, "Other pairs: those that the rule samples from this seed.")
    tuned: Path | None = option(None, "Each method at its best setting: tuned.json of `bench tuning`.")
    blora: Path | None = option(None, "B-LoRA's blocks, as `bench figure3` writes them: blocks.json  [SDXL's two].")


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
        "Pairs of photos, a file of `duolora datasets pairs`; one for each data set of the table. Rows that need "
        "Atelier's truth (oracle, PairCustomization) are left out then.",
    )
    contents: list[Path] | None = option(
        None, "With --photos: the data set with the subjects; one for all, or one for each --photos."
    )
    styles: list[Path] | None = option(None, "With --photos: the data set with the styles, likewise; may be the same.")
    captions: Captions = option(
        "class",
        "With --photos: the LoRAs' captions, class ('a sks dog', 'a house in zwx style') or paper (the paper's: 'a "
        "sks object in vkt style', 'a ohw object in zwx style').",
    )
    metrics: str = option("paper", "With --photos: what they are scored by, as in `duolora evaluate`.")
    checkpoint: list[str] | None = option(
        None, "With --photos: NAME=WHERE, another hub id, folder or file for dino, clip or csd."
    )


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
