"""What the page does, on a tiny base, without the page."""

import asyncio
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from duolora.api.train import TrainOptions
from duolora.errors import FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.merging.mask_file import read_masks, rebuilt
from duolora.ui import page, work
from duolora.ui.jobs import Worker
from duolora.ui.page import KnownHosts
from duolora.ui.work import Asked, Side, Studio, Wanted, check_asked, file_stem, opened, worded

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def studio(base, folder):
    """A studio whose base is loaded."""
    made = Studio()
    made._base = (str(folder), base)
    return made


@pytest.fixture(scope="module")
def made(studio, folder, loras, photos, tmp_path_factory):
    """A merge of a LoRA file with a style that was trained from an image."""
    content = Side(lora=loras[0], images=tuple(sorted(photos.glob("*.png"))))
    style = Side(images=(photos / "1.png",), prompt="a house in zwx style")
    news = []
    asked = Asked(content, style, str(folder), "ziprank", train_steps=2, merge_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "default_options", lambda *_: TrainOptions(rank=2))
        patch.setattr(work, "PREVIEWS", {"train": 2, "merge": 3})
        patch.setattr(work, "EVERY", float("inf"))
        done = studio.make(asked, tmp_path_factory.mktemp("001"), news.append)
    stages = list(dict.fromkeys(n.stage for n in news))
    assert stages == ["Reading what was brought", "Training on the style", "Merging by ziprank", "Generating"]
    assert [n.done for n in news if n.images] == [2, 3]
    assert len([n for n in news if n.stage.startswith("Merging")][-1].losses) == 2, "the first and the last of three"
    return done


def told(_):
    """Nobody listens."""


def pixels(images):
    return np.stack([np.asarray(image, float) for image in images])


def test_strengths_act_at_once_and_exactly(studio, made):
    whole = pixels(studio.generate(made, Wanted(made.prompt, count=1), told))
    nothing = pixels(studio.generate(made, Wanted(made.prompt, 0.0, 0.0, 1), told))
    nearly = pixels(studio.generate(made, Wanted(made.prompt, 1.0, 0.999999, 1), told))
    assert np.abs(whole - nearly).max() <= 2, "the two parts at full strength are the merge"
    assert np.abs(whole - nothing).max() > 2
    assert made.prompt == "a sks cat in zwx style"


def test_what_comes_on_the_way_is_named_and_counted_too(monkeypatch):
    monkeypatch.setattr(work, "EVERY", 0)
    news = []
    feed = work.Feed("Training on the subject", news.append)
    for title, done in (("Class images", 3), ("Training", 1), ("Generating", 4)):
        feed.step(title, done, 5)
    feed.losses(2, 5, {"loss": 0.5})
    stages = [(each.stage, each.done, each.of) for each in news[1:]]
    stage = "Training on the subject"
    assert stages == [(f"{stage}: class images", 3, 5), (stage, 1, 5), (f"{stage}: generating", 4, 5), (stage, 2, 5)]


def test_generating_can_be_stopped_and_says_how_far_it_is(studio, made, monkeypatch):
    monkeypatch.setattr(work, "EVERY", 0)
    news = []
    studio.generate(made, Wanted(made.prompt, count=1), news.append)
    assert [(n.done, n.of) for n in news[1:]] == [(1, 2), (2, 2)]

    def stop(news):
        if news.of:
            raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        studio.generate(made, Wanted(made.prompt, count=1), stop)
    assert np.array_equal(*(pixels(studio.generate(made, Wanted(made.prompt, count=1), told)) for _ in range(2)))


def test_every_format(studio, made):
    for format in ("diffusers", "kohya", "uniform"):
        (path,) = studio.export(made, format, 1.0, 0.5, told)
        assert read_adapter(path).modules.keys() == read_adapter(made.merged()).modules.keys()
        assert path.name == f"a-sks-cat-in-zwx-style-ziprank-1-0.5-{format}.safetensors"
    assert len(studio.export(made, "split", 1.0, 1.0, told)) == 2
    (masks,) = studio.export(made, "masks", 1.0, 1.0, told)
    again = rebuilt(read_masks(masks), made.folder / "content.safetensors", made.folder / "style.safetensors")
    whole = read_adapter(made.merged())
    for name, lora in again.modules.items():
        assert (lora.delta() - whole.modules[name].delta()).abs().max() < 1e-3
    with pytest.raises(InputError, match="expected one of kohya"):
        studio.export(made, "zip", 1.0, 1.0, told)


def test_methods_side_by_side_at_the_same_strengths(studio, made):
    news = []
    found = studio.compare(made, ["naive", "ziprank"], Wanted(made.prompt, count=1), news.append)
    assert list(found) == ["naive", "ziprank"]
    assert np.array_equal(pixels(found["ziprank"]), pixels(studio.generate(made, Wanted(made.prompt, count=1), told)))
    stages = ["Merging by naive", "Generating by naive", "Generating by ziprank"]
    assert list(dict.fromkeys(n.stage for n in news)) == stages
    again = []
    none = studio.compare(made, ["naive"], Wanted(made.prompt, 0.0, 0.0, 1), again.append)
    assert {n.stage for n in again} == {"Generating by naive"}, "what was merged is not merged again"
    assert np.abs(pixels(none["naive"]) - pixels(found["naive"])).max() > 2, "the strengths hold here, too"
    with pytest.raises(InputError, match="svd mixes the two LoRAs"):
        studio.compare(made, ["svd"], Wanted(made.prompt, 1.0, 0.5, 1), told)


def test_a_finished_merge_is_opened_again_as_it_was(made):
    again = opened(made.folder)
    assert (again.prompt, again.text) == (made.prompt, made.text)
    assert again.asked.style.prompt == "a house in zwx style" and again.asked.style.lora is None
    assert again.asked.content.lora == made.folder / "content.safetensors"
    assert len(again.asked.content.images) == len(made.asked.content.images)
    assert (again.asked.method, again.asked.train_steps, again.asked.merge_steps) == ("ziprank", 2, 3)
    assert len(again.images("generated")) == work.COUNT
    (made.folder / "half").mkdir()
    (made.folder / "half" / "made.json").write_text('{"prompt": 1}')
    with pytest.raises(InputError, match="no finished merge"):
        opened(made.folder / "half")


def test_two_files_need_no_base_for_a_plain_method(loras, tmp_path):
    asked = Asked(Side(lora=loras[0]), Side(lora=loras[1]), "no such base", "naive")
    made = Studio().make(asked, tmp_path, told)
    assert read_adapter(made.merged()).modules and "; no images: no such base: " in made.text


def test_what_cannot_be_made_is_said_before_any_work(studio, made, folder, photos, tmp_path):
    words, images = Side(prompt="a cat"), Side((photos / "1.png",), "a house in zwx style")
    for asked, match in (
        (Asked(words, words), "the subject: expected images or a LoRA file"),
        (Asked(images, words), "the style: expected images or a LoRA file"),
        (Asked(images, Side(images.images)), "the style: expected words for what its images show"),
        (Asked(images, images, method="nosuch"), "method: expected one of"),
        (Asked(images, images, train_steps=0), "steps: expected a whole number, 1 or more"),
        (Asked(images, images, method="naive", merge_steps=5), "steps of the masks: naive trains none"),
    ):
        with pytest.raises(InputError, match=match):
            check_asked(asked)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"1234")
    asked = Asked(images, Side(lora=broken), str(folder))
    (tmp_path / "x" / "001").mkdir(parents=True)
    with pytest.raises(FileRefused) as refused:
        studio.make(asked, tmp_path / "x" / "001", told)
    assert worded(refused.value, asked, tmp_path / "x" / "001").startswith("the style's file broken.safetensors")
    with pytest.raises(InputError, match="words for what to generate"):
        studio.generate(made, Wanted(" "), told)
    with pytest.raises(InputError, match="tick some"):
        studio.compare(made, [], Wanted(made.prompt), told)


def test_errors_are_in_the_words_of_the_page(tmp_path):
    asked = Asked(Side(lora=tmp_path / "cat.safetensors"), Side())
    error = InputError(f"{tmp_path}/001/style/03-moon.png: no image; {tmp_path}/001/content.safetensors: name it with "
                       "--base (a folder), or give a lower --lr")  # fmt: skip
    text = worded(error, asked, tmp_path / "001")
    assert text == ("the style's image moon.png: no image; the subject's file cat.safetensors: name it under Base "
                    "(a folder), or give a lower lr")  # fmt: skip


def test_a_file_is_named_by_what_is_in_it(made):
    assert file_stem(made, 1.0, 1.0) == "a-sks-cat-in-zwx-style-ziprank"
    assert file_stem(made, 0.5, 1.25) == "a-sks-cat-in-zwx-style-ziprank-0.5-1.25"


def answer(host, kind="http"):
    """What a page on this machine answers to a request with that Host header."""
    sent = []

    async def app(scope, receive, send):
        sent.append("passed on")

    async def send(message):
        sent.append(message.get("status", message["type"]))

    headers = [(b"host", host.encode())] if host is not None else []
    asyncio.run(KnownHosts(app, "127.0.0.1")({"type": kind, "headers": headers}, None, send))
    return sent[0]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "192.168.0.7"])
def test_the_page_answers_to_its_own_names(host):
    assert answer(host) == "passed on"


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "", None])
def test_the_page_does_not_answer_to_names_that_others_point_here(host):
    assert answer(host) == 421
    assert answer(host, "websocket") == "websocket.close"


def test_the_page_is_served_with_a_bound_and_to_known_hosts_only(tmp_path, monkeypatch):
    given, shown = {}, MagicMock()
    shown.launch = lambda **options: given.update(options) or (None, "http://127.0.0.1", None)
    for name, made in (
        ("gradio", MagicMock),
        ("Worker", lambda *_: MagicMock(spec=Worker)),
        ("built", lambda *_: shown),
    ):
        monkeypatch.setattr(page, name, made)
    monkeypatch.setitem(sys.modules, "starlette.middleware", SimpleNamespace(Middleware=lambda kind, **_: kind))
    monkeypatch.setitem(sys.modules, "starlette", SimpleNamespace())
    assert page.serve(tmp_path, block=False) == (shown, "http://127.0.0.1")
    assert (given["server_name"], given["share"], given["max_file_size"]) == ("127.0.0.1", False, page.LARGEST_UPLOAD)
    assert given["app_kwargs"]["middleware"] == [KnownHosts]
