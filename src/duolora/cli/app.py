"""The command `duolora`: verbs for people. Nothing heavy is imported before a verb needs it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.main import get_group

from duolora.cli import evaluate as scores, files
from duolora.cli.common import (
    JsonOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    chosen,
    doing,
    one_line,
    printable,
    report,
    tell_images,
    verification_facts,
    verified,
)
from duolora.cli.config import options_of_file
from duolora.cli.early import check_inputs, check_known, check_output, check_place, is_local
from duolora.cli.examples import examples
from duolora.cli.files import DtypeOption, FormatOption
from duolora.cli.set_option import merge_options, methods, tell
from duolora.cli.spread import Changes, Without, spread
from duolora.errors import InputError
from duolora.lora.write.atomic import check_folder, check_out
from duolora.merging.options import METHODS, WEIGHTS, MergeOptions
from duolora.model.architectures import shapes_in
from duolora.model.defaults import (
    AUTO,
    FITS,
    BaseChoice,
    Sampling,
    base_path,
    check_base,
    check_sampling,
    read_defaults,
)
from duolora.options import DEFAULT_FORMAT, Export, check_weights, option, told, word
from duolora.textfiles import read_lines
from duolora.training.options import TrainOptions, check_training, training_of


class _Configured(TyperGroup):
    """Commands whose options may come from the file that `--config` names, before the command or after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line, `--config FILE` first."""
        end = args.index("--") if "--" in args else len(args)
        for k in (k for k, each in enumerate(args[:end]) if each.partition("=")[0] == "--config"):
            own = args[k : k + (1 if "=" in args[k] else 2)]
            return super().parse_args(ctx, [*own, *args[:k], *args[k + len(own) :]])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, with the file's options for defaults; what a person can act on is told in one line."""
        with one_line():
            if ctx.params.get("config") is not None:
                ctx.default_map = options_of_file(Path(ctx.params["config"]), self.commands)
            return super().invoke(ctx)


class _Benchmarks(TyperGroup):
    """`bench`, whose many commands are made when one of them is asked for, since that takes as long as all others."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return _benchmarks().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them."""
        return _benchmarks().get_command(ctx, cmd_name)


@cache
def _benchmarks() -> TyperGroup:
    from duolora.cli.bench import bench

    return get_group(bench)


app = typer.Typer(
    name="duolora",
    cls=_Configured,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich takes words in brackets for markup, and leaves them out
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 160},
    help="""Turn a content LoRA and a style LoRA into one LoRA file that generates that subject in that style.

    \b
    Try it, with nothing to download:
        duolora demo --out demo

    \b
    From photos to one file:
        duolora train --images photos/ --prompt "a sks teapot in flat style"  --out teapot.safetensors
        duolora train --images flat.png --prompt "a house in zwx style"      --out flat.safetensors
        duolora merge --content teapot.safetensors --style flat.safetensors   --out both.safetensors
        duolora generate --prompt "a sks teapot in zwx style" --lora both.safetensors --out images

    Every command works on the base that ships inside (`--base atelier`, 32×32 pixels, two CPU cores are enough) and on
    SDXL, SSD-1B and Segmind-Vega (`--base` with a diffusers folder, a .safetensors checkpoint or a hub id).
    """,
)

TensorboardOption = Annotated[
    Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write event files of losses, masks and previews.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", is_eager=True, callback=tell,
                 help="Any other option; `--set help` lists them, with their defaults."),
]  # fmt: skip
PREVIEWS = 50
"""With event files, a preview after so many steps."""


def _two(files: Sequence[Path], content: Path | None, style: Path | None) -> tuple[Path, Path]:
    """The content and the style LoRA, whichever way they were given."""
    if len(files) == 2 and content is None and style is None:
        return files[0], files[1]
    if files or content is None or style is None:
        raise typer.BadParameter("expected two files, the content LoRA and the style LoRA, or --content and --style")
    return content, style


def _version(asked: bool) -> bool:
    if asked:
        import duolora

        typer.echo(f"duolora {duolora.__version__}")
        raise typer.Exit()
    return asked


@app.callback()
def settings(
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of options: [merge] steps = 50, …; the command line wins.")
    ] = None,
    say_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which version it is.")
    ] = False,
) -> None:
    """Options before the command, which `_Configured` sees to."""


@app.command(epilog=examples("demo"))
@spread
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the images, the LoRA files, the comparison and the table.")
    ] = Path("demo"),
    pair: Annotated[int | None, typer.Option(help="The seed of another subject and style than the demo's own.")] = None,
    *,
    base: Annotated[BaseChoice, Without(("base", "config", "gradient_checkpointing", "resolution"))],
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Show all of it: train two LoRAs, merge, generate, compare.

    It takes about four minutes on two CPU cores; every method merges the same two.
    """
    check_folder(out)
    base = chosen(base, quiet)
    with doing("Loading atelier", quiet):
        from duolora.api.demo import PAIR, demo as run
        from duolora.atelier.pairs import sample_pair

    typer.echo(run(out, seed, PAIR if pair is None else sample_pair(pair), progress=not quiet, base=base))


@dataclass(frozen=True)
class Shown:
    """What a LoRA is trained on, and after how many steps something is written."""

    kind: Literal["content", "style"] = option(
        "content", "content or style: what they show; a base may train the two otherwise."
    )
    class_prompts: Path | None = option(
        None,
        "Prior preservation: a text file with a prompt on each line, whose class images by the base stay as they are; "
        "an empty file for none  [none, or the base's own].",
    )
    fit: str = option("crop", f"How an image becomes a square: {'; '.join(f'{k} ({v})' for k, v in FITS.items())}.")
    save_every: int = option(
        100, "Steps from one checkpoint to the next; the same command goes on from the last.", least=1
    )
    preview_every: int = option(
        0, "Steps from one preview to the next, in OUT's name with .previews; 0 is none.", least=0
    )


@app.command(epilog=examples("train"))
@spread
def train(
    images: Annotated[
        Path,
        typer.Option(
            help="A folder of images of one subject or one style, or a single image; sub-folders are left out."
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option(
            help='What they show, with an identifier and, if the base knows it, the kind: "a sks teapot in flat style".'
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    *,
    changed: Annotated[
        dict[str, Any], Changes(TrainOptions, without=("seed", "class_prompts"), default=", or the base's own")
    ],
    shown: Shown,
    base: BaseChoice,
    seed: SeedOption = 0,
    tensorboard: TensorboardOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA on images of a subject, or on one of a style."""
    word("fit", shown.fit, list(FITS))
    given = changed if shown.class_prompts is None else changed | {"class_prompts": read_lines(shown.class_prompts)}
    options = replace(training_of(read_defaults(base.base), shown.kind), seed=seed, **given)
    check_training(options, shapes_in(base.base))
    check_out(out, [base_path(base.base)], overwrite)
    check_inputs((), images)
    base = chosen(base, quiet)
    with doing(f"Loading {base.base}", quiet):
        from duolora.api.train import train as run
        from duolora.progress import shown as bars
        from duolora.training.callbacks import SavedPreviews, event_log

    with event_log(tensorboard, PREVIEWS) as log, bars(not quiet):
        previews = out.expanduser().with_suffix(".previews")
        callback = SavedPreviews(previews, shown.preview_every, log) if shown.preview_every else log
        done = run(
            images, prompt, out, base, options, progress=not quiet, callback=callback, fit=shown.fit,
            overwrite=overwrite, kind=shown.kind, save_every=shown.save_every,
        )  # fmt: skip
    tell_images(quiet, images, fit=shown.fit)
    text = f"{done.path}: {verified(done.verification)}"
    report(as_json, text, path=done.path, losses=done.losses, **verification_facts(done.verification))


@dataclass(frozen=True)
class Sides:
    """What a merge is made from besides the two files."""

    content_images: Path | None = option(
        None, "Images of the subject, cropped about the centre  [generated with its LoRA]."
    )
    style_images: Path | None = option(
        None, "Images of the style, cropped about the centre  [generated with its LoRA]."
    )
    content_prompt: str | None = option(None, "The content LoRA's trigger prompt  [from its file].")
    style_prompt: str | None = option(None, "The style LoRA's trigger prompt  [from its file].")
    merged_prompt: str | None = option(None, "The trigger prompt for both  [put together from the two].")


@app.command(epilog=f"{methods()}\n\n{examples('merge')}")
@spread
def merge(
    out: Annotated[Path, typer.Option(help="The .safetensors file to write; for peft a folder.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="The content LoRA and the style LoRA; or use --content and --style.")
    ] = None,
    *,
    content: Annotated[Path | None, typer.Option(help="The content LoRA (a subject).")] = None,
    style: Annotated[Path | None, typer.Option(help="The style LoRA.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "duolora",
    base: Annotated[
        str | None,
        typer.Option(
            help="`atelier`, a diffusers folder, a .safetensors checkpoint, or a hub id"
            f"  [by the files; none for {', '.join(name for name, o in METHODS.items() if not o.asks_network)}]."
        ),
    ] = None,
    changed: Annotated[
        dict[str, Any],
        Changes(MergeOptions, ("content_weight", "style_weight", "steps"), default=", or the method's own"),
    ],
    sides: Sides,
    preset: Annotated[str | None, typer.Option(help=f"The paper's loss weights: {', '.join(WEIGHTS)}.")] = None,
    assignments: SetOption = None,
    format: FormatOption = DEFAULT_FORMAT,
    dtype: DtypeOption = "float16",
    run: Annotated[BaseChoice, Without(("base",))],
    seed: SeedOption = 0,
    tensorboard: TensorboardOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge a content LoRA and a style LoRA into one LoRA file.

    It is an ordinary LoRA, and its strength is verified.
    """
    content, style = _two(files or [], content, style)
    options = merge_options(method, preset, changed | {"seed": seed}, assignments or [])
    check_output(out, format, dtype, Export, (content, style, None if base is None else base_path(base)), overwrite)
    _check_sides({"content": content, "style": style}, sides, tensorboard, options, method, base or AUTO)
    opened = chosen(replace(run, base=base or AUTO), quiet) if base is not None or options.asks_network else None
    with doing("Reading the two LoRAs", quiet):
        from duolora.api.merge import merge as merged
        from duolora.model.blocks import formatted
        from duolora.training.callbacks import event_log

    with event_log(tensorboard, PREVIEWS) as log:
        done = merged(
            content, style, out, method, opened, **vars(sides), options=options, progress=not quiet, format=format,
            announce=None if quiet else lambda found: typer.echo(formatted(found), err=True),
            dtype=dtype, callback=log, overwrite=overwrite,
        )  # fmt: skip
    tell_images(quiet, sides.content_images, sides.style_images)
    _tell(done, options.unmasked, as_json)


def _check_sides(
    loras: dict[str, Path], sides: Sides, log: Path | None, options: MergeOptions, method: str, base: str
) -> None:
    """Refuse what a method makes no use of, files that cannot be and, where masks are trained, what that would lack."""
    given = {"--content-images": sides.content_images, "--style-images": sides.style_images, "--tensorboard": log}
    if unused := [name for name, value in given.items() if value is not None and not options.asks_network]:
        raise InputError(f"{unused[0]}: {method} trains nothing; leave it out")
    check_inputs(loras.values(), sides.content_images, sides.style_images)
    if options.asks_network:
        check_known(loras, {"content": sides.content_prompt, "style": sides.style_prompt}, method, base)


_FACTS = ("trainable", "left_out", "unmasked", "paths", "mean_change", "seconds", "losses")
"""What `merge --json` says of a merge, beside its file and how that was verified."""


def _tell(done: Any, policy: str, as_json: bool) -> None:
    """Say what a merge has come to."""
    text = f"{' and '.join(map(str, done.paths))}: {verified(done.verification)}"
    if done.trainable:
        text += f"\n{done.trainable} mask entries trained, mean change {done.mean_change:.3f}; {done.seconds:.1f} s"
    if done.left_out:
        parts = f"{len(done.left_out)} parts, beginning with {done.left_out[0]}"
        text += f"\nnot carried over: {printable(parts)}"
    if done.unmasked:
        text += f"\n{done.unmasked} modules outside the attention layers, by the policy unmasked={policy}"
    facts = {name: getattr(done, name) for name in _FACTS}
    report(as_json, text, path=done.path, **verification_facts(done.verification), **facts)


@app.command(epilog=examples("generate"))
@spread
def generate(
    prompt: Annotated[list[str], typer.Option(help="What to generate; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the images; where some are already, the numbers go on.")],
    *,
    lora: Annotated[list[Path] | None, typer.Option(help="A LoRA file to apply; may be given several times.")] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="What multiplies each LoRA, in their order  [1 each].")
    ] = None,
    num: Annotated[int, typer.Option(help=told(Sampling, "num"))] = Sampling.num,
    steps: Annotated[int, typer.Option(help=told(Sampling, "steps"))] = Sampling.steps,
    guidance: Annotated[
        float | None,
        typer.Option(help=f"{told(Sampling, 'guidance')}  [{Sampling.guidance:g}, or the base's own]."),
    ] = None,
    base: Annotated[BaseChoice, Without(("gradient_checkpointing",))],
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate images from prompts, with or without LoRA files."""
    check_sampling(prompt, Sampling(num, steps, Sampling.guidance if guidance is None else guidance))
    check_weights(weight, len(lora or ()))
    check_folder(out)
    check_inputs(lora or ())
    base = chosen(base, quiet)
    with doing(f"Loading {base.base}", quiet):
        from duolora.api.generate import generate as run

    files = run(
        prompt, out, lora or [], base, num, seed, steps=steps, guidance=guidance, weights=weight, progress=not quiet
    )
    report(as_json, "\n".join(map(str, files)), files=files)


@app.command(epilog=examples("ui"))
def ui(
    folder: Annotated[Path, typer.Option("--out", help="Folder for everything that is made.")] = Path("duolora-ui"),
    base: Annotated[str, typer.Option(help="The base that is offered first.")] = "atelier",
    port: Annotated[int | None, typer.Option(help="Port  [the first free one from 7860].")] = None,
    host: Annotated[str, typer.Option(help="Where it listens; by default this machine only.")] = "127.0.0.1",
    password: Annotated[
        str, typer.Option(help="What visitors have to give, with any name.", envvar="DUOLORA_PASSWORD")
    ] = "",
) -> None:
    """Open a page to work with, by default on this machine only.

    Train, merge, reweight, compare and download.
    """
    check_folder(folder)
    check_base(base)
    check_place(host, port)
    if not password and not is_local(host):
        typer.echo(f"duolora: {printable(host)}: whoever reaches it can use the page, read all that is made there "
                   "and have any base on this machine loaded; --password keeps others out", err=True)  # fmt: skip
    with doing("Opening the page"):
        from duolora.ui.page import serve

    serve(folder, base, host, port, password)


for command in (scores.evaluate, scores.choose, scores.refine, files.convert, files.compose, files.inspect):
    app.command(epilog=examples(command.__name__))(command)
app.add_typer(
    typer.Typer(
        cls=_Benchmarks,
        no_args_is_help=True,
        help="""Run a table or figure of the paper, on Atelier or photos.

    A table is a folder of cells (a pair, a method, a seed). What is finished is never run again, so a stopped run
    goes on when the same command is given; LoRAs are shared by all tables in `--out`. On two CPU cores a pair takes
    about two minutes for its LoRAs and half a minute for each trained method: begin with `--pairs 1`.
    """,
    ),
    name="bench",
)
app.add_typer(scores.datasets)
app.add_typer(scores.checkpoints)
