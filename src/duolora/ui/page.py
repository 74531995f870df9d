"""The page itself, in Gradio: nothing is sent anywhere, nothing is fetched from anywhere."""

import os
import socket
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from hmac import compare_digest
from html import escape
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from duolora.api.demo import PAIR
from duolora.atelier.family import article
from duolora.atelier.pairs import Pair, rendered, sample_pair
from duolora.errors import DuoLoRAError, InputError
from duolora.merging.options import METHOD_HELP, METHODS
from duolora.options import DEFAULT_FORMAT, Range
from duolora.ui.jobs import Job, Jobs, Worker
from duolora.ui.work import COUNT, FORMATS, SIDES, Asked, Made, News, Side, Studio, Wanted, prompt_in

CSS = """
footer { display: none !important; }
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important; }
.gradio-container { --body-text-color-subdued: #6b6b76; --block-info-text-color: #6b6b76; }
.dark .gradio-container { --body-text-color-subdued: #a1a1aa; --block-info-text-color: #a1a1aa; }
.line:not(:has(p)) { display: none; }
.line p { overflow-wrap: anywhere; margin: 0.3rem 0; }
.line progress { appearance: none; width: 100%; height: 0.7rem; border: 0; border-radius: 0.35rem; overflow: hidden; }
.line progress, .line progress::-webkit-progress-bar { background: var(--border-color-primary); }
.line progress::-webkit-progress-value { background: var(--color-accent); }
.line progress::-moz-progress-bar { background: var(--color-accent); }
.line svg { width: 100%; height: 60px; }
.line .bad { color: #c0392b; font-weight: 600; }
.dark .line .bad { color: #f08c78; }
img { image-rendering: pixelated; }
.gallery-container .grid-wrap { padding-top: 2.2rem !important; }
#method input { padding-right: 1.8rem; text-overflow: ellipsis; }
.gallery-container .grid-wrap { height: auto !important; max-height: none !important; min-height: 0 !important; }
:is(#previews, #images, #side-by-side) { height: auto !important; }
.gallery-container .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
@media (max-width: 600px) { :is(#previews, #images) .grid-container { --grid-cols: 2 !important; } }
#side-by-side .grid-container { max-width: calc(var(--grid-cols) * 180px); }
#side-by-side .caption-label { max-width: 100%; padding: 0 0.2rem; font-size: 0.7rem; white-space: normal; }
"""
COMPARED = ("naive", "ziplora", "duolora")
MOST, SEEDS = 16, 2**32 - 1
"""Of images at once; of seeds."""
LARGEST_UPLOAD = "2gb"
"""Of one file; an SDXL LoRA of rank 256 has 1.4 GB."""
EXAMPLES = (PAIR, sample_pair(3))
RESTS = 0.05
"""Seconds after which an idle page looks for work; Gradio does so after 0.001, which took 8 % of a busy core."""
READ_ADDRESS = "() => new URLSearchParams(location.search).get('job') || ''"
WRITE_ADDRESS = "number => { history.replaceState(null, '', number ? '?job=' + number : location.pathname) }"
Changes = dict[Any, Any]
"""By the part of the page that changes, what it shows then."""
Doing = Generator[Changes, None, tuple[Any, Changes]]
Brought = Sequence[tuple[str, str | None]] | None
"""Files of a gallery, with their captions."""


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
    folder: Path, base: str = "atelier", host: str = "127.0.0.1", port: int | None = None, password: str = "",
    block: bool = True,
) -> tuple[Any, str]:  # fmt: skip
    """Serve the page; returns it and its address, once it is closed where `block` is true.

    With a password, every name is let in that gives it.

    Raises:
        InputError: Gradio is not installed, or the port is taken.
    """
    gr = gradio()
    from starlette.middleware import Middleware  # Gradio's own

    folder = folder.expanduser().absolute()
    worker = Worker(Studio)
    worker.start()
    page = built(gr, Jobs(worker, folder), base)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page.queue()
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = RESTS
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port, share=False, quiet=True, show_error=True, ssr_mode=False,
            footer_links=[], run_history=False, prevent_thread_lock=True, allowed_paths=[str(folder)],
            max_file_size=LARGEST_UPLOAD, app_kwargs={"middleware": [Middleware(KnownHosts, host=host)]},
            theme=gr.themes.Default(**fonts), css=CSS,
            auth=(lambda _, given: compare_digest(given.encode(), password.encode())) if password else None,
            auth_message="Any name, and the password of this page",
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


def bad(text: object) -> str:
    """An error as HTML."""
    return f'<p class="bad" role="alert">{escape(str(text))}</p>'


def whole(label: str, value: float | None, least: int, most: float | None = None) -> int | None:
    """A whole number from a field; None where it is empty.

    Raises:
        InputError: it is no whole number, or out of range.
    """
    known = Range(least, most=most)
    if value is not None and (value != int(value) or not known.holds(value)):
        raise InputError(f"{label}: expected a whole number{known}, got {value:g}")
    return None if value is None else int(value)


class Acts:
    """What the buttons of the page do: each yields what changes on it."""

    def __init__(self, gr: Any, jobs: Jobs) -> None:
        """The parts of the page are put into `at` as they are made."""
        self.gr, self.jobs, self.at = gr, jobs, SimpleNamespace()
        self.running: dict[int, Job] = {}

    def make(self, *fields: Any) -> Iterator[Changes]:
        """Train what is missing, merge and generate, telling how far it is."""
        try:
            job = self.jobs.make(_asked(*fields))
        except DuoLoRAError as error:
            yield self._lines(self.at.status, bad(error))
            return
        yield from self._made(job, {self.at.done: ""})

    def load(self, number: str) -> Iterator[Changes]:
        """After a reload: the merge of the number in the page's address, finished or on its way."""
        job, made = self.jobs.making.get(number), self.jobs.made(number)
        begun = {self.at.earlier: self._earlier()}
        if made is not None:
            yield begun | self._fields(made.asked) | self._shown(made)
        elif job is not None:
            yield from self._made(job, begun | self._fields(job.given[0]))
        else:
            yield begun

    def reopen(self, number: str) -> Changes:
        """A merge that was finished some time ago."""
        made = self.jobs.made(number)
        return {self.at.earlier: self._earlier()} | (
            {} if made is None else self._fields(made.asked) | self._shown(made)
        )

    def regenerate(self, working: int, made: Made | None, count: Any, seed: Any, *how: Any) -> Iterator[Changes]:
        """Images of the prompt at these strengths."""
        images, ended = yield from self._work(self.at.generate_status, "generate", working, made, (count, seed), *how)
        yield ended | ({} if images is None else {self.at.images: self.gr.Gallery(images, visible=True)})

    def compare(self, working: int, made: Made | None, count: Any, seed: Any, *how: Any) -> Iterator[Changes]:
        """Images of the same prompt, seeds and strengths by every method, each row after the references."""
        found, ended = yield from self._work(self.at.compare_status, "compare", working, made, (count, seed), *how)
        if made is not None and found is not None:
            references = [(path, name) for kind, name in SIDES.items() for path in made.images(kind)[:1]]
            rows = [each for name, images in found.items() for each in (*references, *((i, name) for i in images))]
            columns = len(references) + int(count or COUNT)
            ended[self.at.side_by_side] = self.gr.Gallery(rows, columns=columns, fit_columns=False, visible=True)
        yield ended

    def export(self, working: int, made: Made | None, *how: Any) -> Iterator[Changes]:
        """The files, for download."""
        files, ended = yield from self._work(self.at.file_status, "export", working, made, None, *how)
        yield ended | ({} if files is None else {self.at.files: self.gr.File(list(map(str, files)), visible=True)})

    def stop(self, working: int) -> None:
        """Stop what this page is doing, and nothing of another's."""
        if working in self.running:
            self.jobs.stop(self.running[working])

    def dropped(self, kind: str, lora: str | None, words: str, filled: str) -> Changes:
        """After a LoRA file came or went: what is wrong with it, and its prompt, unless somebody typed other words.

        `words` are those in the field, `filled` what an earlier file put there.
        """
        (_, field, _), (wrong, filling) = self.at.sides[kind], self.at.notes[kind]
        found, said = "", ""
        try:
            found = prompt_in(lora) if lora else ""
        except DuoLoRAError as error:
            said = bad(str(error).replace(str(lora), Path(str(lora)).name))
        if words.strip() in ("", filled.strip()):
            return {field: found, filling: found, wrong: said}
        if found not in ("", words.strip()):
            said = f"<p>Your words are used; the file says: {escape(found)}</p>"
        return {wrong: said}

    def _work(self, line: Any, name: str, working: int, made: Made | None, sampling: Any, *how: Any) -> Doing:
        """Work on what was made, told in this line; no result where the page is busy, or the work fails."""
        if working:
            return None, {self.at.working: working}
        try:
            if made is None:
                raise InputError("there is nothing to work with yet; make a LoRA first")
            if sampling is not None:
                count, seed = whole("images", sampling[0], 1, MOST), whole("first seed", sampling[1], 0, SEEDS)
                *others, prompt, content, style = how
                how = (*others, Wanted(prompt, content, style, count or COUNT, seed or 0))
        except InputError as error:
            return None, self._lines(line, bad(error))
        return (yield from self._followed(self.jobs.start(name, made, *how), line))

    def _made(self, job: Job, begun: Changes | None = None) -> Iterator[Changes]:
        made, ended = yield from self._followed(job, self.at.status, begun)
        yield ended | ({} if made is None else self._shown(made) | {self.at.earlier: self._earlier()})

    def _followed(self, job: Job, line: Any, begun: Changes | None = None) -> Doing:
        """The news of a job in this line, the buttons disabled meanwhile; returns its result, and what changes then.

        Of changes that follow one another at once a browser shows the last only, so each says everything.
        """
        at, gr = self.at, self.gr
        self.running[id(job)] = job
        always = {at.working: id(job), **self._busy(True)} | ({at.number: job.number} if job.number else {})
        for news in job.news():
            previews = {at.previews: gr.Gallery(list(news.images), visible=True)} if news.images else {}
            yield {**self._lines(line, status(news)), **always, **previews, **(begun or {})}
            begun = {}
        self.running.pop(id(job), None)
        ended = {at.working: 0, at.previews: gr.Gallery([], visible=False), **self._busy(False)}
        try:
            return job.result(), {**self._lines(), **ended}
        except DuoLoRAError as error:
            return None, {**self._lines(line, bad(error)), **ended}

    def _busy(self, yes: bool) -> Changes:
        """Buttons that begin something are disabled while something is done, and Stop while nothing is."""
        at, button = self.at, self.gr.Button
        begin = dict.fromkeys((at.go, at.generate, at.against, at.write), button(interactive=not yes))
        return {**begin, at.halt: button(interactive=yes)}

    def _lines(self, *told: Any) -> Changes:
        """All lines that tell of work or errors, empty but for the one that is given with its text."""
        at = self.at
        lines = (at.status, at.generate_status, at.compare_status, at.file_status)
        return dict.fromkeys(lines, "") | (dict([told]) if told else {})

    def _shown(self, made: Made) -> Changes:
        """A finished merge, and the images that were generated with it."""
        at, gr = self.at, self.gr
        text = f'<p role="status">Done: {escape(made.text)}. All files are in {escape(str(made.folder))}</p>'
        images = made.images("generated")
        return {
            at.number: made.folder.name, at.done: text, at.made: made, at.prompt: made.prompt, **self._lines(),
            at.images: gr.Gallery(images, visible=bool(images)), at.side_by_side: gr.Gallery([], visible=False),
            at.files: gr.File(None, visible=False),
        }  # fmt: skip

    def _fields(self, asked: Asked) -> Changes:
        """The fields as they were when something was asked for."""
        changes: Changes = {}
        for kind, (images, words, lora) in self.at.sides.items():
            side, (wrong, filling) = asked.side(kind), self.at.notes[kind]
            changes |= {images: list(side.images) or None, words: side.prompt, lora: side.lora and str(side.lora)}
            changes |= {wrong: "", filling: side.prompt if side.lora else ""}
        values = (asked.base, asked.method, asked.train_steps, asked.merge_steps, asked.seed)
        return changes | dict(zip(self.at.more, values, strict=True))

    def _earlier(self) -> Any:
        """What can be opened again, by number, prompt and method."""
        found = self.jobs.finished()
        named = [(f"{m.folder.name}: {m.prompt or 'no prompt'}, {m.asked.method}", m.folder.name) for m in found]
        return self.gr.Dropdown(named, value=None, visible=bool(named))

    def example(self, pair: Pair, working: int) -> Changes:
        """The images and prompts of an example, for the base that ships; errors go, unless something is being done."""
        images = example_images(pair, self.jobs.folder / "examples")
        sides = {kind: Side(tuple(images[kind]), words) for kind, words in _prompts(pair).items()}
        return self._fields(Asked(sides["content"], sides["style"])) | ({} if working else self._lines())


def _prompts(pair: Pair) -> dict[str, str]:
    return {"content": pair.content_prompt, "style": pair.style_prompt}


def example_images(pair: Pair, folder: Path) -> dict[str, list[Path]]:
    """The images of an example as files, rendered if they are not there yet."""
    found: dict[str, list[Path]] = {}
    for kind, scenes in (("content", pair.content_scenes()), ("style", [pair.style_scene()])):
        place = folder / f"{pair.colour}-{pair.kind}-{pair.style}" / kind
        found[kind] = [place / f"{k}.png" for k in range(len(scenes))]
        if not all(path.exists() for path in found[kind]):
            place.mkdir(parents=True, exist_ok=True)
            for path, image in zip(found[kind], rendered(scenes), strict=True):
                Image.fromarray(image).save(path)
    return found


def built(gr: Any, jobs: Jobs, base: str) -> Any:
    """The page: what to bring, how it goes, what came out."""
    acts = Acts(gr, jobs)
    at = acts.at
    with gr.Blocks(title="DuoLoRA", analytics_enabled=False) as page:
        at.made, at.working, at.number = gr.State(), gr.State(0), gr.Textbox(visible="hidden", elem_id="job")
        gr.Markdown("# DuoLoRA\nA few photos of a subject and an image of a style, or two LoRA files, become one LoRA.")
        at.earlier = gr.Dropdown([], label="Open an earlier merge again", visible=False, elem_id="earlier")
        fields = _asking(gr, acts, base)
        with gr.Row():
            at.go = gr.Button("Make the LoRA", variant="primary", elem_id="make")
            at.halt = gr.Button("Stop", elem_id="stop", interactive=False)
        at.status = gr.HTML(elem_id="status", elem_classes="line")
        at.done = gr.HTML(elem_id="done", elem_classes="line")
        at.previews = _gallery(gr, "Previews", "previews")
        sampling = _generating(gr, at)
        compared = _comparing(gr, at, sampling)
        exported = _download(gr, at)
        of = [at.working, at.made]
        _on(acts, at.go.click, acts.make, fields)
        _on(acts, page.load, acts.load, at.number, js=READ_ADDRESS)
        _on(acts, at.earlier.input, acts.reopen, at.earlier)
        asks = [at.generate.click, at.prompt.submit, *(slider.release for slider in at.weights)]
        for ask in asks:
            _on(acts, ask, acts.regenerate, [*of, *sampling])
        _on(acts, at.against.click, acts.compare, [*of, *compared])
        _on(acts, at.write.click, acts.export, [*of, *exported])
        for button, pair in at.examples:
            _on(acts, button.click, partial(acts.example, pair), at.working)
        at.halt.click(acts.stop, at.working, queue=False)
        at.number.change(None, at.number, js=WRITE_ADDRESS)
    return page


def _on(acts: Acts, when: Any, do: Any, inputs: Any, **more: Any) -> None:
    """Let an act change any part of the page; jobs queue by themselves, so everybody is told at once where they are."""
    at = acts.at
    single = [part for part in vars(at).values() if not isinstance(part, list | dict)]
    parts = [*single, *at.more, *(part for sides in (at.sides, at.notes) for side in sides.values() for part in side)]
    when(do, inputs, parts, show_progress="hidden", concurrency_limit=None, **more)


def _asking(gr: Any, acts: Acts, base: str) -> list[Any]:
    """What to make of what."""
    at = acts.at
    gr.Markdown("Nothing at hand? Two examples for `atelier`, the small base inside (pixel art of 32×32 pixels):")
    with gr.Row():
        at.examples = []
        for pair in EXAMPLES:
            style = example_images(pair, acts.jobs.folder / "examples")["style"][0]
            name = f"{article(pair.colour)} {pair.kind}, in the style of this {pair.shown}"
            at.examples.append((gr.Button(name, icon=style, size="sm", elem_classes="example"), pair))
    with gr.Row():
        at.sides, at.notes = {}, {}
        _side(gr, acts, "The subject", "content", "a sks teapot in flat style")
        _side(gr, acts, "The style", "style", "a house in zwx style")
    named = [(f"{name}: {METHOD_HELP[name]}", name) for name in METHODS]
    method = gr.Dropdown(named, value="duolora", label="Method", info="how the two become one", elem_id="method")
    where = gr.Textbox(
        base, label="Base", info="atelier (inside), a folder, a .safetensors file or a hub id", elem_id="base"
    )
    with gr.Accordion("Steps and seed", open=False, elem_id="more"), gr.Row():
        train_steps = gr.Number(None, label="Steps for each LoRA [the base's own]")
        merge_steps = gr.Number(None, label="Steps of the masks [100]")
        seed = gr.Number(0, label="Seed")
    at.more = [where, method, train_steps, merge_steps, seed]
    return [*at.sides["content"], *at.sides["style"], *at.more]


def _side(gr: Any, acts: Acts, title: str, key: str, example: str) -> None:
    """Where one side is dropped: images with what they show, or a file, whose own prompt is filled in."""
    with gr.Column(min_width=300):
        gr.Markdown(f"### {title}")
        images = gr.Gallery(
            label="Images", file_types=["image"], sources=["upload", "clipboard"], columns=5, height=170,
            fit_columns=False, object_fit="contain", interactive=True, elem_id=f"{key}-images", buttons=[],
        )  # fmt: skip
        words = gr.Textbox(
            label="What they show: its kind, with an identifier of its own", placeholder=example,
            elem_id=f"{key}-prompt",
        )  # fmt: skip
        lora = gr.File(label="… or a LoRA file", file_types=[".safetensors"], elem_id=f"{key}-lora", height=130)
        wrong = gr.HTML(elem_classes="line", elem_id=f"{key}-wrong")
        filled = gr.State("")
    acts.at.sides[key], acts.at.notes[key] = (images, words, lora), (wrong, filled)
    parts = [words, wrong, filled]
    gr.on([lora.upload, lora.clear], partial(acts.dropped, key), [lora, words, filled], parts, show_progress="hidden")


def _gallery(gr: Any, label: str, id: str) -> Any:
    """Images, of which nothing is to be seen as long as there are none."""
    return gr.Gallery(
        label=label, columns=4, fit_columns=False, object_fit="contain", elem_id=id, format="png",
        interactive=False, visible=False, buttons=["fullscreen"],
    )  # fmt: skip


def _generating(gr: Any, at: SimpleNamespace) -> list[Any]:
    """Images of a prompt at any strengths; returns how."""
    gr.Markdown("## Generate")
    with gr.Row():
        at.prompt = gr.Textbox(label="Prompt", elem_id="prompt", scale=3, min_width=280)
        count = gr.Number(COUNT, label="Images", elem_id="count")
        first = gr.Number(0, label="First seed", elem_id="first-seed")
    with gr.Row():
        at.weights = [
            gr.Slider(0, 1.5, 1.0, step=0.05, label=f"Strength of the {name}", min_width=240, elem_id=f"weight-{kind}")
            for kind, name in SIDES.items()
        ]
    at.generate = gr.Button("Generate", elem_id="generate")
    at.generate_status = gr.HTML(elem_classes="line", elem_id="generate-status")
    at.images = _gallery(gr, "Images", "images")
    return [count, first, at.prompt, *at.weights]


def _comparing(gr: Any, at: SimpleNamespace, sampling: Sequence[Any]) -> list[Any]:
    """The same prompt, seeds and strengths by several methods; returns how."""
    count, first, *how = sampling
    with gr.Accordion("Compare methods at the same seeds and strengths", open=False, elem_id="compare-part"):
        methods = gr.CheckboxGroup(list(METHODS), value=list(COMPARED), label="Methods", elem_id="methods")
        at.against = gr.Button("Compare", elem_id="compare")
        at.compare_status = gr.HTML(elem_id="compare-status", elem_classes="line")
        at.side_by_side = _gallery(gr, "Side by side", "side-by-side")
    return [count, first, methods, *how]


def _download(gr: Any, at: SimpleNamespace) -> list[Any]:
    """The merge as files in any format; returns how."""
    gr.Markdown("## Download")
    with gr.Row():
        format = gr.Dropdown(
            list(FORMATS), value=DEFAULT_FORMAT, label="Format", info="with the strengths above", elem_id="format"
        )
        at.write = gr.Button("Write the file", elem_id="export")
    at.file_status = gr.HTML(elem_classes="line", elem_id="file-status")
    at.files = gr.File(
        label="Files", file_count="multiple", interactive=False, elem_id="files", height=130, visible=False
    )
    return [format, *at.weights]


def _asked(*fields: Any) -> Asked:
    """What the form asks for: images, prompt and LoRA of content and style, base, method, both steps and the seed."""
    base, method, train_steps, merge_steps, seed = fields[6:]
    return Asked(
        _brought(*fields[:3]), _brought(*fields[3:6]), base.strip(), method,
        whole("steps for each LoRA", train_steps, 1), whole("steps of the masks", merge_steps, 0),
        whole("seed", seed, 0, SEEDS) or 0,
    )  # fmt: skip


def _brought(images: Brought, prompt: str, lora: str | None) -> Side:
    return Side(tuple(Path(path) for path, _ in images or ()), prompt.strip(), Path(lora) if lora else None)
