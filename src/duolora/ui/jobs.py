"""The jobs of the page: one after another, each with a stop of its own, whoever is looking."""

import math
import pickle
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any

from duolora.errors import DuoLoRAError, InputError
from duolora.ui.work import RECORD, SIDES, Asked, Made, News, check_asked, opened, worded

STOPPED = "stopped"
PATIENCE = 5.0
"""Seconds that work may take to stop by itself."""


class Stopped(DuoLoRAError):
    """Somebody pressed Stop."""


class Job:
    """Work that was asked for: its newest news, and in the end its result or error."""

    def __init__(self, name: str, given: tuple[Any, ...], number: str = "") -> None:
        """One of the studio's methods, and what it is given; the number is that of the folder of a merge."""
        self.name, self.given, self.number = name, given, number
        self.stop, self.begun, self.done = Event(), Event(), Event()
        self.now = News("Waiting for other work of this page")
        self.error: DuoLoRAError | None = None
        self.found: Any = None

    def news(self) -> Iterator[News]:
        """The news as they come, until the job has ended; that it stops is told at once."""
        told = None
        self.begun.wait(0.1)  # mostly at once, and then nothing is said of waiting
        while not self.done.is_set():
            now = News("Stopping") if self.stop.is_set() else self.now
            if now != told:
                yield now
            told = now
            self.done.wait(0.1)

    def result(self) -> Any:
        """What an ended job has made.

        Raises:
            DuoLoRAError: nothing; why.
        """
        if self.error is not None:
            raise self.error
        return self.found

    def end(self, found: Any = None, error: DuoLoRAError | None = None) -> None:
        """Have the result or the error told; of what was refused, nothing stays but a LoRA that was trained."""
        self.found = found
        self.error = error if error is None or self.name != "make" else _refused(error, *self.given)
        self.done.set()


class Jobs:
    """All jobs in one folder, done one after another by one worker; they go on when nobody looks any more."""

    def __init__(self, worker: "Worker", folder: Path) -> None:
        """What is made goes into numbered folders inside this one."""
        self.worker, self.folder = worker, folder
        self.making: dict[str, Job] = {}
        self._turns, self._lock, self._last = Queue[Job](), Lock(), 0
        Thread(target=self._work, daemon=True).start()

    def start(self, name: str, *given: object) -> Job:
        """Begin one of the studio's methods with these values, when its turn comes."""
        job = Job(name, given)
        self._turns.put(job)
        return job

    def make(self, asked: Asked) -> Job:
        """Begin a merge in a folder of its own.

        Raises:
            DuoLoRAError: it cannot be made.
        """
        check_asked(asked)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            there = (int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
            self._last = 1 + max(self._last, *there, 0)
            folder = self.folder / f"{self._last:03d}"
            folder.mkdir()
        job = self.making[folder.name] = Job("make", (asked, folder), folder.name)
        self._turns.put(job)
        return job

    def stop(self, job: Job) -> None:
        """Stop this job, and no other; at once if its turn has not come."""
        with self._lock:
            job.stop.set()
            if not job.begun.is_set() and not job.done.is_set():
                job.end(error=Stopped(STOPPED))

    def finished(self) -> list[Made]:
        """All merges that can be opened again, the newest first."""
        numbers = (path.parent.name for path in self.folder.glob(f"*/{RECORD}"))
        every = (self.made(number) for number in sorted(filter(str.isdigit, numbers), key=int, reverse=True))
        return [made for made in every if made is not None]

    def made(self, number: str) -> Made | None:
        """The finished merge of that number, if there is one."""
        try:
            return opened(self.folder / number) if number.isdigit() else None
        except InputError:
            return None

    def _work(self) -> None:
        while True:
            job = self._turns.get()
            with self._lock:
                if not job.done.is_set():
                    job.now = News("Starting")
                    job.begun.set()
            if job.begun.is_set():
                self._do(job)

    def _do(self, job: Job) -> None:
        try:
            work = self.worker.run(job.stop, job.name, *job.given)
            while True:
                job.now = next(work)
        except StopIteration as end:
            job.end(end.value)
        except DuoLoRAError as error:
            job.end(error=error)
        except Exception as error:  # told to the person, whatever it is
            job.end(error=DuoLoRAError(f"{type(error).__name__}: {error}"))


def _refused(error: DuoLoRAError, asked: Asked, folder: Path) -> DuoLoRAError:
    """Why nothing was made, in words; of its folder only LoRAs stay that were trained."""
    text = worded(error, asked, folder)
    trained = [kind for kind in SIDES if not asked.side(kind).lora and (folder / f"{kind}.safetensors").exists()]
    if not trained:
        shutil.rmtree(folder, ignore_errors=True)
        return type(error)(f"{text}; nothing was written" if isinstance(error, Stopped) else text)
    kept = " and ".join(str(folder / f"{kind}.safetensors") for kind in trained)
    return type(error)(f"{text}; what was trained is kept: {kept}")


class Worker:
    """A studio in a process of its own: whatever it does, and even if it hangs, it can be stopped."""

    def __init__(self, studio: Callable[[], Any], patience: float = PATIENCE) -> None:
        """`studio` makes the studio there; `patience` is how long, in seconds, it may take to stop by itself."""
        self.studio, self.patience = studio, patience
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Begin the process, if there is none."""
        if self._process is None or not self._process.is_alive():
            context = get_context("spawn")
            self._pipe, other = context.Pipe()
            self._halt = context.Event()
            self._process = context.Process(target=_serve, args=(self.studio, other, self._halt), daemon=True)
            self._process.start()
            other.close()

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def run(self, stop: Event, name: str, *given: object) -> Generator[News, None, Any]:
        """The news of one of the studio's methods, as it comes, until `stop` is set; returns what the method returns.

        Raises:
            DuoLoRAError: the method does, or it was stopped, or its process has died.
        """
        self.start()
        self._halt.clear()
        self._pipe.send_bytes(pickle.dumps((name, given)))
        late, ended = math.inf, False
        try:
            while time.monotonic() < late:
                if stop.is_set() and late == math.inf:
                    self._halt.set()
                    late = time.monotonic() + self.patience
                if not self._pipe.poll(0.1):
                    continue
                try:
                    kind, value = pickle.loads(self._pipe.recv_bytes())
                except (EOFError, OSError) as error:
                    raise DuoLoRAError("the work has ended by itself; its memory may have been full") from error
                ended = kind != "news"
                if kind == "failed":
                    raise value
                if kind == "done":
                    return value
                yield value
            raise Stopped(STOPPED)
        finally:
            if not ended:
                self.end()


def _serve(studio: Callable[[], Any], pipe: Any, halt: Any) -> None:
    """What the process of a `Worker` does: one method after another, until the page is gone."""
    made = studio()

    def tell(news: News) -> None:
        """Send news to the page, unless the work is to stop."""
        if halt.is_set():
            raise Stopped(STOPPED)
        pipe.send_bytes(pickle.dumps(("news", news)))

    while True:
        try:
            name, given = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            said = ("done", getattr(made, name)(*given, tell))
        except DuoLoRAError as error:
            said = ("failed", error)
        except Exception as error:  # told to the person, whatever it is
            said = ("failed", DuoLoRAError(f"{type(error).__name__}: {error}"))
        pipe.send_bytes(pickle.dumps(said))
