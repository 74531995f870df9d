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
from duolora.lora.names import DEFAULT_FORMAT
from duolora.merging.options import METHODS
from duolora.ui.work import FORMATS, Asked, Made, News, Side, Studio, Worker

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
LARGEST_UPLOAD = "2gb"
"""Of one file; an SDXL LoRA of rank 256 has 1.4 GB."""
COMPARED = ("naive", "ziplora", "duolora")


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
            f"duolora ui: expected the package gradio, found none ({error}); pip install 'duolora[ui]'"
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


def built(gr: Any, worker: Worker, base: str) -> Any:
    """The page: what to bring, how it goes, what came out."""
    stop = Event()

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        """Errors that a person can act on are shown to the person."""

        def run(*inputs: Any) -> Any:
            try:
                return work(*inputs)
            except DuoLoRAError as error:
                raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

        return run

    def make(*inputs: Any) -> Iterator[tuple[Any, ...]]:
        work, same = worker.run(stop, "make", _asked(*inputs)), gr.skip()
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
        yield "<p>Drawing …</p>", same, same, same, same
        pictures = worker.result(stop, "draw", made, made.prompt) if made.prompt else same
        text = f'<p role="status">Done: {escape(made.text)}. All files are in {escape(str(made.folder))}</p>'
        yield text, same, made, made.prompt, pictures

    def redraw(made: Made | None, prompt: str, content: float, style: float, count: float, seed: float) -> Any:
        return worker.result(stop, "draw", _there(made), prompt, content, style, int(count), int(seed))

    def compare(
        made: Made | None, methods: list[str], prompt: str, count: float, seed: float
    ) -> Iterator[tuple[Any, Any]]:
        try:
            work = worker.run(stop, "compare", _there(made), methods, prompt, int(count), int(seed))
            while True:
                yield status(next(work)), gr.skip()
        except StopIteration as end:
            found = end.value
        except DuoLoRAError as error:
            yield f'<p class="bad" role="alert">{escape(str(error))}</p>', gr.skip()
            return
        rows = [(picture, name) for name, pictures in found.items() for picture in pictures]
        yield "", gr.Gallery(rows, columns=max(1, int(count)), fit_columns=False)

    def export(made: Made | None, format: str, content: float, style: float) -> list[str]:
        return [str(path) for path in worker.result(stop, "export", _there(made), format, content, style)]

    with gr.Blocks(title="DuoLoRA", analytics_enabled=False) as page:
        made = gr.State()
        gr.Markdown("# DuoLoRA\nA few photos of a thing and a picture of a look, or two LoRA files, become one LoRA.")
        with gr.Row():
            content = _side(gr, "The thing", "content", "a sks thing in flat style")
            style = _side(gr, "The look", "style", "a house in zwx style")
        with gr.Row():
            method = gr.Dropdown(
                list(METHODS), value="duolora", label="Method", info="how the two become one", elem_id="method"
            )
            where = gr.Textbox(
                base, label="Base", info="atelier, a folder, a .safetensors file or a hub id", elem_id="base"
            )
        with gr.Accordion("Steps and seed", open=False, elem_id="more"), gr.Row():
            train_steps = gr.Number(None, label="Updates for each LoRA [the base's own]", precision=0, minimum=1)
            merge_steps = gr.Number(None, label="Updates of the masks [100]", precision=0, minimum=0)
            seed = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            go = gr.Button("Make the LoRA", variant="primary", elem_id="make")
            halt = gr.Button("Stop", elem_id="stop")
        state = gr.HTML(elem_id="status")
        previews = gr.Gallery(
            label="Previews",
            columns=4,
            fit_columns=False,
            object_fit="contain",
            elem_id="previews",
            format="png",
            buttons=[],
        )
        gr.Markdown("## Draw")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", elem_id="prompt", scale=3, min_width=280)
            count = gr.Number(4, label="Pictures", precision=0, minimum=1, maximum=16, elem_id="count")
            first = gr.Number(0, label="First seed", precision=0, elem_id="first-seed")
        with gr.Row():
            weights = [
                gr.Slider(
                    0, 1.5, 1.0, step=0.05, label=f"Strength of the {name}", min_width=240, elem_id=f"weight-{key}"
                )
                for name, key in (("thing", "content"), ("look", "style"))
            ]
        draw = gr.Button("Draw", elem_id="draw")
        pictures = gr.Gallery(
            label="Pictures", columns=4, fit_columns=False, elem_id="pictures", format="png", buttons=["fullscreen"]
        )
        with gr.Accordion("Compare methods at the same seeds", open=False, elem_id="compare-part"):
            methods = gr.CheckboxGroup(list(METHODS), value=list(COMPARED), label="Methods", elem_id="methods")
            against = gr.Button("Compare", elem_id="compare")
            progress = gr.HTML(elem_id="compare-status")
            side_by_side = gr.Gallery(label="Side by side", columns=4, elem_id="side-by-side", format="png")
        gr.Markdown("## Download")
        with gr.Row():
            format = gr.Dropdown(
                list(FORMATS), value=DEFAULT_FORMAT, label="Format", info="with the strengths above", elem_id="format"
            )
            write = gr.Button("Write the file", elem_id="export")
        files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files", height=130)

        asked = [*content, *style, where, method, train_steps, merge_steps, seed]
        one = {"concurrency_id": "base", "concurrency_limit": 1}
        go.click(make, asked, [state, previews, made, prompt, pictures], show_progress="hidden", **one)
        halt.click(lambda: stop.set(), queue=False)
        drawn = [made, prompt, *weights, count, first]
        gr.on([draw.click, prompt.submit, *(w.release for w in weights)], guarded(redraw), drawn, pictures, **one)
        against.click(
            compare, [made, methods, prompt, count, first], [progress, side_by_side], show_progress="hidden", **one
        )
        write.click(guarded(export), [made, format, *weights], files, **one)
    return page


def _side(gr: Any, title: str, key: str, prompt: str) -> list[Any]:
    """Where one side is dropped: pictures with what they show, or a file."""
    with gr.Column(min_width=300):
        gr.Markdown(f"### {title}")
        pictures = gr.File(
            label="Pictures", file_count="multiple", file_types=["image"], elem_id=f"{key}-pictures", height=140
        )
        words = gr.Textbox(
            prompt, label="What they show: its kind, with an identifier of its own", elem_id=f"{key}-prompt"
        )
        lora = gr.File(label="… or a LoRA file", file_types=[".safetensors"], elem_id=f"{key}-lora", height=140)
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
        raise InputError("there is nothing to draw with yet; make a LoRA first")
    return made
