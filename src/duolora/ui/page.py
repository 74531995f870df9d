"""The page itself, in Gradio: nothing is sent anywhere, nothing is fetched from anywhere."""

import os
import socket
from collections.abc import Callable, Iterator
from html import escape
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import Any

from duolora.errors import DuoLoRAError, InputError
from duolora.merging.options import METHOD_HELP, METHODS
from duolora.options import DEFAULT_FORMAT
from duolora.ui.work import FORMATS, Asked, Made, News, Side, Studio, Worker, prompt_in

CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#status p { overflow-wrap: anywhere; }
#status progress { width: 100%; height: 0.7rem; accent-color: #3b82c4; }
#status svg { width: 100%; height: 60px; }
#status .bad { color: #c0392b; font-weight: 600; }
@media (prefers-color-scheme: dark) { #status .bad { color: #f08c78; } }
img { image-rendering: pixelated; }
.gallery-container .grid-wrap { height: auto !important; max-height: none !important; min-height: 8rem !important; }
#previews, #pictures, #side-by-side { height: auto !important; }
.gallery-container .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
@media (max-width: 600px) { :is(#previews, #pictures) .grid-container { --grid-cols: 2 !important; } }
#side-by-side .grid-container { max-width: calc(var(--grid-cols) * 260px); }
"""
COMPARED = ("naive", "ziplora", "duolora")
LARGEST_UPLOAD = "2gb"
"""Of one file; an SDXL LoRA of rank 256 has 1.4 GB."""


def gradio() -> Any:
    """Gradio, told before it is imported to keep to itself.

    Raises:
        InputError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio compares with the word "True"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio as found
    except ImportError as error:
        raise InputError(
            f"duolora ui: expected gradio, found none ({error}); in a clone: `make ui` or pip install '.[ui]'"
        ) from None
    return found


class KnownHosts:
    """An ASGI application that answers to the names of this machine only, and to addresses.

    A page of somebody else's, whose name is made to mean this machine (DNS rebinding), speaks to it under that name.
    """

    def __init__(self, app: Any, host: str) -> None:
        """`host` is what the page listens on."""
        own = socket.gethostname().lower()
        self.app, self.names = app, {"localhost", host.lower(), own, f"{own}.local"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        said = [value.decode("latin-1") for key, value in scope.get("headers", ()) if key == b"host"]
        if scope["type"] == "lifespan" or (len(said) == 1 and self.knows(said[0])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": b"This page is not served under that name."})

    def knows(self, host: str) -> bool:
        """Whether a Host header is an address or one of this machine's names."""
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        try:
            return bool(ip_address(name))
        except ValueError:
            return name.lower().rstrip(".") in self.names


def serve(
    folder: Path, base: str = "atelier", host: str = "127.0.0.1", port: int | None = None, block: bool = True
) -> tuple[Any, str]:
    """Serve the page; returns it and its address, once it is closed where `block` is true.

    Raises:
        InputError: Gradio is not installed, or the port is taken.
    """
    gr = gradio()
    from starlette.middleware import Middleware  # Gradio's own

    folder = folder.expanduser().absolute()
    worker = Worker(Studio, folder)
    worker.start()
    page = built(gr, worker, base)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, url, _ = page.queue(default_concurrency_limit=1).launch(
            server_name=host, server_port=port, share=False, quiet=True, show_error=True, ssr_mode=False,
            footer_links=[], run_history=False, prevent_thread_lock=True, allowed_paths=[str(folder)],
            max_file_size=LARGEST_UPLOAD, app_kwargs={"middleware": [Middleware(KnownHosts, host=host)]},
            theme=gr.themes.Default(**fonts), css=CSS,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"port {port}: the page cannot be served there ({error}); choose another --port") from error
    if block:
        print(f"{url}  (Ctrl-C ends it; files go into {folder})", flush=True)
        page.block_thread()
    return page, url


def status(news: News) -> str:
    """Where the work is, as HTML: words, a bar and the loss so far."""
    text = f"<p>{escape(news.stage)}" + (f": {news.done} of {news.of}</p>" if news.of else " …</p>")
    if news.of:
        text += f'<progress value="{news.done}" max="{news.of}"></progress>'
    if len(news.losses) > 1:
        low, high = min(news.losses), max(news.losses)
        steps = 300 / (len(news.losses) - 1)
        line = " ".join(
            f"{k * steps:.1f},{56 - 52 * (v - low) / ((high - low) or 1):.1f}" for k, v in enumerate(news.losses)
        )
        text += '<svg viewBox="0 0 300 60" preserveAspectRatio="none" role="img" aria-label="loss">'
        text += f'<polyline points="{line}" fill="none" stroke="currentColor" vector-effect="non-scaling-stroke"/>'
        text += f"</svg><small>loss {news.losses[-1]:.4f}</small>"
    return text


class Acts:
    """What the buttons of the page do."""

    def __init__(self, gr: Any, worker: Worker) -> None:
        """All work of the page is done by one worker."""
        self.gr, self.worker, self.stop = gr, worker, Event()

    def guarded(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Errors that a person can act on are shown to the person."""

        def run(*inputs: Any) -> Any:
            try:
                return work(*inputs)
            except DuoLoRAError as error:
                raise self.gr.Error(escape(str(error)), duration=None, print_exception=False) from None

        return run

    def make(self, *inputs: Any) -> Iterator[tuple[Any, ...]]:
        """Train what is missing and merge, telling how far it is; then generate."""
        work, same = self.worker.run(self.stop, "make", _asked(*inputs)), self.gr.skip()
        try:
            while True:
                news = next(work)
                yield status(news), list(news.pictures) or same, same, same, same
        except StopIteration as end:
            made = end.value
        except DuoLoRAError as error:
            yield f'<p class="bad" role="alert">{escape(str(error))}</p>', same, same, same, same
            return
        finally:
            work.close()
        yield "<p>Generating …</p>", same, same, same, same
        pictures = self.worker.result(self.stop, "draw", made, made.prompt) if made.prompt else same
        text = f'<p role="status">Done: {escape(made.text)}. All files are in {escape(str(made.folder))}</p>'
        yield text, same, made, made.prompt, pictures

    def redraw(self, made: Made | None, prompt: str, content: float, style: float, count: float, seed: float) -> Any:
        """Images of the prompt at these strengths."""
        return self.worker.result(self.stop, "draw", _there(made), prompt, content, style, int(count), int(seed))

    def compare(
        self, made: Made | None, methods: list[str], prompt: str, count: float, seed: float
    ) -> Iterator[tuple[Any, Any]]:
        """Images of the same prompt and seeds by every method."""
        try:
            work = self.worker.run(self.stop, "compare", _there(made), methods, prompt, int(count), int(seed))
            while True:
                yield status(next(work)), self.gr.skip()
        except StopIteration as end:
            found = end.value
        except DuoLoRAError as error:
            yield f'<p class="bad" role="alert">{escape(str(error))}</p>', self.gr.skip()
            return
        rows = [(picture, name) for name, pictures in found.items() for picture in pictures]
        yield "", self.gr.Gallery(rows, columns=max(1, int(count)), fit_columns=False)

    def export(self, made: Made | None, format: str, content: float, style: float) -> list[str]:
        """The files, for download."""
        return [str(path) for path in self.worker.result(self.stop, "export", _there(made), format, content, style)]


def built(gr: Any, worker: Worker, base: str) -> Any:
    """The page: what to bring, how it goes, what came out."""
    acts, one = Acts(gr, worker), {"concurrency_id": "base", "concurrency_limit": 1}
    with gr.Blocks(title="DuoLoRA", analytics_enabled=False) as page:
        made = gr.State()
        gr.Markdown("# DuoLoRA\nA few photos of a subject and an image of a style, or two LoRA files, become one LoRA.")
        asked = _asking(gr, acts, base)
        with gr.Row():
            go = gr.Button("Make the LoRA", variant="primary", elem_id="make")
            halt = gr.Button("Stop", elem_id="stop")
        state = gr.HTML(elem_id="status")
        previews = gr.Gallery(
            label="Previews", columns=4, fit_columns=False, object_fit="contain", elem_id="previews", format="png",
            buttons=[],
        )  # fmt: skip
        prompt, count, first, weights, pictures = _generating(gr, acts, made, one)
        _comparing(gr, acts, [made, prompt, count, first], one)
        _download(gr, acts, [made, *weights], one)
        go.click(acts.make, asked, [state, previews, made, prompt, pictures], show_progress="hidden", **one)
        halt.click(lambda: acts.stop.set(), queue=False)
    return page


def _asking(gr: Any, acts: Acts, base: str) -> list[Any]:
    """What to make of what."""
    with gr.Row():
        content = _side(gr, acts, "The subject", "content", "a sks teapot in flat style")
        style = _side(gr, acts, "The style", "style", "a house in zwx style")
    with gr.Row():
        named = [(f"{name}: {METHOD_HELP[name]}", name) for name in METHODS]
        method = gr.Dropdown(named, value="duolora", label="Method", info="how the two become one", elem_id="method")
        where = gr.Textbox(
            base, label="Base", info="atelier, a folder, a .safetensors file or a hub id", elem_id="base"
        )
    with gr.Accordion("Steps and seed", open=False, elem_id="more"), gr.Row():
        train_steps = gr.Number(None, label="Steps for each LoRA [the base's own]", precision=0, minimum=1)
        merge_steps = gr.Number(None, label="Steps of the masks [100]", precision=0, minimum=0)
        seed = gr.Number(0, label="Seed", precision=0)
    return [*content, *style, where, method, train_steps, merge_steps, seed]


def _generating(gr: Any, acts: Acts, made: Any, one: dict[str, Any]) -> tuple[Any, Any, Any, list[Any], Any]:
    """Images of a prompt at any strengths."""
    gr.Markdown("## Generate")
    with gr.Row():
        prompt = gr.Textbox(label="Prompt", elem_id="prompt", scale=3, min_width=280)
        count = gr.Number(4, label="Images", precision=0, minimum=1, maximum=16, elem_id="count")
        first = gr.Number(0, label="First seed", precision=0, elem_id="first-seed")
    with gr.Row():
        weights = [
            gr.Slider(0, 1.5, 1.0, step=0.05, label=f"Strength of the {name}", min_width=240, elem_id=f"weight-{key}")
            for name, key in (("subject", "content"), ("style", "style"))
        ]
    draw = gr.Button("Generate", elem_id="draw")
    pictures = gr.Gallery(
        label="Images", columns=4, fit_columns=False, elem_id="pictures", format="png", buttons=["fullscreen"]
    )
    drawn = [made, prompt, *weights, count, first]
    released = [w.release for w in weights]
    gr.on([draw.click, prompt.submit, *released], acts.guarded(acts.redraw), drawn, pictures, **one)
    return prompt, count, first, weights, pictures


def _comparing(gr: Any, acts: Acts, drawn: list[Any], one: dict[str, Any]) -> None:
    """The same prompt and seeds by several methods."""
    made, prompt, count, first = drawn
    with gr.Accordion("Compare methods at the same seeds", open=False, elem_id="compare-part"):
        methods = gr.CheckboxGroup(list(METHODS), value=list(COMPARED), label="Methods", elem_id="methods")
        against = gr.Button("Compare", elem_id="compare")
        progress = gr.HTML(elem_id="compare-status")
        side_by_side = gr.Gallery(label="Side by side", columns=4, elem_id="side-by-side", format="png")
    inputs, outputs = [made, methods, prompt, count, first], [progress, side_by_side]
    against.click(acts.compare, inputs, outputs, show_progress="hidden", **one)


def _download(gr: Any, acts: Acts, merge: list[Any], one: dict[str, Any]) -> None:
    """The merge as files in any format."""
    made, *weights = merge
    gr.Markdown("## Download")
    with gr.Row():
        format = gr.Dropdown(
            list(FORMATS), value=DEFAULT_FORMAT, label="Format", info="with the strengths above", elem_id="format"
        )
        write = gr.Button("Write the file", elem_id="export")
    files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files", height=130)
    write.click(acts.guarded(acts.export), [made, format, *weights], files, **one)


def _side(gr: Any, acts: Acts, title: str, key: str, example: str) -> list[Any]:
    """Where one side is dropped: images with what they show, or a file, whose own prompt is filled in."""
    with gr.Column(min_width=300):
        gr.Markdown(f"### {title}")
        pictures = gr.File(
            label="Images", file_count="multiple", file_types=["image"], elem_id=f"{key}-pictures", height=140
        )
        words = gr.Textbox(
            label="What they show: its kind, with an identifier of its own", placeholder=example,
            elem_id=f"{key}-prompt",
        )  # fmt: skip
        lora = gr.File(label="… or a LoRA file", file_types=[".safetensors"], elem_id=f"{key}-lora", height=140)
        lora.upload(acts.guarded(prompt_in), lora, words)
    return [pictures, words, lora]


def _asked(
    content_pictures: list[str] | None, content_prompt: str, content_lora: str | None,
    style_pictures: list[str] | None, style_prompt: str, style_lora: str | None,
    base: str, method: str, train_steps: float | None, merge_steps: float | None, seed: float | None,
) -> Asked:  # fmt: skip
    return Asked(
        _brought(content_pictures, content_prompt, content_lora), _brought(style_pictures, style_prompt, style_lora),
        base.strip(), method, int(train_steps) if train_steps else None,
        None if merge_steps is None else int(merge_steps), int(seed or 0),
    )  # fmt: skip


def _brought(pictures: list[str] | None, prompt: str, lora: str | None) -> Side:
    return Side(tuple(Path(p) for p in pictures or ()), prompt.strip(), Path(lora) if lora else None)


def _there(made: Made | None) -> Made:
    if made is None:
        raise InputError("there is nothing to generate with yet; make a LoRA first")
    return made
