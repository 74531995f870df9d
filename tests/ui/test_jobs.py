"""Jobs of the page: whose they are, how they are stopped, and what stays of them."""

import os
import time
from pathlib import Path
from threading import Event

import pytest
import torch

from duolora.errors import DuoLoRAError, InputError
from duolora.ui.jobs import Jobs, Stopped, Worker
from duolora.ui.work import Asked, Made, News, Side
from processes import FORKED

IMAGES = Side((Path("a.png"),), "a cat")


class Odd:
    """A studio that counts, fails, goes on and on, and hangs, as the method says that is asked for."""

    def make(self, asked, folder, tell):
        what = asked.base
        tell(News("begun"))
        if what == "count":
            for k in range(3):
                tell(News("counting", k, 3))
            return Made(folder, asked, "a cat", "done").saved()
        if what == "fail":
            raise InputError(f"{folder}/style.safetensors: no")
        if what == "fail late":
            (folder / "content.safetensors").write_bytes(b"trained")
            raise InputError("no")
        if what == "die":
            os._exit(9)
        while True:
            tell(News("on and on")) if what == "talk" else time.sleep(0.01)

    def generate(self, what, tell):
        return {"sampling": torch.ones(what)}


@pytest.fixture(scope="module")
def worker():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duolora.ui.jobs.get_context", lambda _: FORKED)
        made = Worker(Odd, patience=0.5)
        yield made
        made.end()


@pytest.fixture
def jobs(worker, tmp_path):
    return Jobs(worker, tmp_path / "all")


def asked(what):
    return Asked(IMAGES, IMAGES, what)


def ended(job):
    """The news of a job, once it has ended."""
    return list(job.news())


def begun(job):
    """A job that is being worked on."""
    while job.now.stage not in ("begun", "on and on"):
        time.sleep(0.01)
    return job


def test_news_arrive_one_after_another_and_results_and_errors_too(worker):
    work, news = worker.run(Event(), "make", asked("count"), Path("nowhere")), []
    with pytest.raises(DuoLoRAError, match="FileNotFoundError"):
        while True:
            news.append(next(work))
    assert [each.done for each in news[1:]] == [0, 1, 2]
    with pytest.raises(InputError, match="no$"):
        list(worker.run(Event(), "make", asked("fail"), Path("nowhere")))


@pytest.mark.parametrize("what", ["talk", "hang"])
def test_stop_stops_even_what_hangs_and_the_next_job_works(jobs, worker, what):
    worker.start()
    process, job = worker._process, begun(jobs.make(asked(what)))
    jobs.stop(job)
    assert next(job.news()).stage == "Stopping", "it is acknowledged at once"
    ended(job)
    with pytest.raises(Stopped, match="nothing was written"):
        job.result()
    assert (worker._process is process) == (what == "talk"), "what stops by itself keeps its base"
    assert not any(jobs.folder.iterdir())
    draw = jobs.start("generate", 2)
    ended(draw)
    assert torch.equal(draw.result()["sampling"], torch.ones(2))


def test_work_that_dies_is_told_and_the_next_job_works(jobs):
    job = jobs.make(asked("die"))
    ended(job)
    assert "ended by itself" in str(job.error) and not any(jobs.folder.iterdir())
    draw = jobs.start("generate", 2)
    ended(draw)
    assert draw.error is None


def test_only_what_waits_is_said_to_wait(jobs):
    first, second = jobs.make(asked("talk")), jobs.make(asked("talk"))
    first.begun.wait()
    assert not next(first.news()).stage.startswith("Waiting")
    assert next(second.news()).stage.startswith("Waiting")
    for job in (second, first):
        jobs.stop(job)
    ended(first)


def test_stop_is_for_one_job_and_a_waiting_one_ends_at_once(jobs):
    first = begun(jobs.make(asked("talk")))
    second, third = jobs.make(asked("count")), jobs.make(asked("count"))
    jobs.stop(second)
    assert second.done.is_set() and isinstance(second.error, Stopped), "its turn need not come for that"
    assert not first.stop.is_set() and not first.done.is_set()
    jobs.stop(first)
    ended(third)
    assert third.result().folder.name == third.number


def test_work_goes_on_when_nobody_looks_and_is_found_again(jobs):
    job = jobs.make(asked("count"))
    watching = job.news()
    next(watching, None)
    watching.close()
    assert jobs.making[job.number] is job, "a page that is loaded again finds it"
    ended(job)
    again = Jobs(jobs.worker, jobs.folder)
    assert [made.folder.name for made in again.finished()] == [job.number], "so does a new server, once it is finished"
    assert again.made(job.number).prompt == "a cat" and again.made("../x") is None and again.made("77") is None


def test_numbers_are_not_used_again(jobs):
    refused = jobs.make(asked("fail"))
    ended(refused)
    assert int(jobs.make(asked("count")).number) > int(refused.number)


def test_of_what_was_refused_nothing_stays_but_what_was_trained(jobs):
    with pytest.raises(InputError, match="neither"):
        jobs.make(Asked(Side(), Side()))
    assert not jobs.folder.exists(), "what can be said at once is said before there is a folder"
    job = jobs.make(asked("fail"))
    ended(job)
    assert str(job.error) == "style.safetensors: no" and not any(jobs.folder.iterdir())
    late = jobs.make(asked("fail late"))
    ended(late)
    kept = jobs.folder / late.number / "content.safetensors"
    assert str(late.error).endswith(f"what was trained is kept: {kept}") and kept.exists()
