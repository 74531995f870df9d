"""What the page does, on a tiny base, without the page."""

import asyncio
import os
import time
from threading import Event

import numpy as np
import pytest
import torch

from duolora.api.train import TrainOptions
from duolora.errors import DuoLoRAError, FileRefused, InputError
from duolora.lora.read.file import read_adapter
from duolora.merging.mask_file import read_masks, rebuilt
from duolora.ui import work
from duolora.ui.page import KnownHosts
from duolora.ui.work import Asked, News, Side, Stopped, Studio, Worker


@pytest.fixture(scope="module")
def studio(base, folder, tmp_path_factory):
    """A studio whose base is loaded."""
    made = Studio(tmp_path_factory.mktemp("studio"))
    made._base = (str(folder), base)
    return made


@pytest.fixture(scope="module")
def made(studio, folder, loras, photos):
    """A merge of a LoRA file with a look that was trained from a picture."""
    content = Side(lora=loras[0], pictures=tuple(sorted(photos.glob("*.png"))))
    style = Side(pictures=(photos / "1.png",), prompt="a house in zwx style")
    news = []
    asked = Asked(content, style, str(folder), "ziprank", train_steps=2, merge_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "default_options", lambda *_: TrainOptions(rank=2))
        patch.setattr(work, "PREVIEWS", {"train": 2, "merge": 3})
        done = studio.make(asked, news.append)
    stages = list(dict.fromkeys(n.stage for n in news))
    assert stages[1:] == ["Training on the style", "Merging by ziprank"], "a LoRA that was brought is not trained"
    assert [n.done for n in news if n.pictures] == [2, 3]
    assert len(news[-2].losses) == 2, "the first and the last of three updates"
    return done


def pixels(images):
    return np.stack([np.asarray(image, float) for image in images])


def test_strengths_act_at_once_and_exactly(studio, made):
    whole = pixels(studio.draw(made, made.prompt, count=1))
    nothing = pixels(studio.draw(made, made.prompt, 0.0, 0.0, 1))
    nearly = pixels(studio.draw(made, made.prompt, 1.0, 0.999999, 1))
    assert np.abs(whole - nearly).max() <= 2, "the two halves at full strength are the merge"
    assert np.abs(whole - nothing).max() > 2
    assert made.prompt == "a sks cat in zwx style"


def test_every_format(studio, made):
    for format in ("diffusers", "kohya", "uniform"):
        (path,) = studio.export(made, format, 1.0, 0.5)
        assert read_adapter(path).modules.keys() == read_adapter(made.merged).modules.keys()
    assert len(studio.export(made, "split")) == 2
    (masks,) = studio.export(made, "masks")
    again = rebuilt(read_masks(masks), made.loras["content"], made.loras["style"])
    whole = read_adapter(made.merged)
    for name, lora in again.modules.items():
        assert (lora.delta() - whole.modules[name].delta()).abs().max() < 1e-3
    with pytest.raises(InputError, match="expected one of kohya"):
        studio.export(made, "zip")


def test_methods_side_by_side(studio, made):
    news = []
    found = studio.compare(made, ["naive", "ziprank"], made.prompt, 1, 0, news.append)
    assert list(found) == ["naive", "ziprank"]
    assert np.array_equal(pixels(found["ziprank"]), pixels(studio.draw(made, made.prompt, count=1)))
    assert [n.stage for n in news] == ["Merging by naive", "Generating by naive", "Generating by ziprank"]
    again = []
    studio.compare(made, ["naive"], made.prompt, 1, 0, again.append)
    assert [n.stage for n in again] == ["Generating by naive"]


def test_what_cannot_be_made(studio, made, folder, tmp_path):
    side = Side(prompt="a thing")
    with pytest.raises(InputError, match="the subject: expected images or a LoRA file"):
        studio.make(Asked(side, side, str(folder)), lambda _: None)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"1234")
    with pytest.raises(FileRefused, match="content"):
        studio.make(Asked(Side(lora=broken), Side(lora=broken), str(folder)), lambda _: None)
    with pytest.raises(InputError, match="words for what to generate"):
        studio.draw(made, " ")
    with pytest.raises(InputError, match="tick some"):
        studio.compare(made, [], made.prompt, 1, 0, lambda _: None)


class Odd:
    """A studio that counts, fails, goes on and on, and hangs."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, what, tell):
        tell(News("begun"))
        if what == "count":
            for k in range(3):
                tell(News("counting", k, 3))
            return {"masks": torch.ones(2)}
        if what == "fail":
            raise InputError("no")
        if what == "die":
            os._exit(9)
        while True:
            tell(News("on and on")) if what == "talk" else time.sleep(0.01)

    def draw(self, what):
        return f"drawn {what}"


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    made = Worker(Odd, tmp_path_factory.mktemp("odd"), patience=0.5)
    yield made
    made.end()


def told(worker, stop, what, at_last=lambda: None):
    """The news of a job, and its result or error; `at_last` is called after the first."""
    work, news = worker.run(stop, "make", what), []
    try:
        while True:
            news.append(next(work))
            at_last()
    except StopIteration as end:
        return news, end.value
    except DuoLoRAError as error:
        return news, error


def test_news_arrive_one_after_another_and_results_and_errors_too(worker):
    news, result = told(worker, Event(), "count")
    assert [each.done for each in news[1:]] == [0, 1, 2] and torch.equal(result["masks"], torch.ones(2))
    assert worker.result(Event(), "draw", "it") == "drawn it"
    _, error = told(worker, Event(), "fail")
    assert isinstance(error, InputError) and str(error) == "no"


@pytest.mark.parametrize("what", ["talk", "hang"])
def test_stop_stops_even_what_hangs_and_the_next_job_works(worker, what):
    worker.start()
    stop, process = Event(), worker._process
    _, error = told(worker, stop, what, stop.set)
    assert isinstance(error, Stopped)
    assert (worker._process is process) == (what == "talk"), "what stops by itself keeps its base"
    assert worker.result(Event(), "draw", "it") == "drawn it"


def test_work_that_dies_is_told_and_the_next_job_works(worker):
    _, error = told(worker, Event(), "die")
    assert "ended by itself" in str(error)
    assert worker.result(Event(), "draw", "it") == "drawn it"


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
