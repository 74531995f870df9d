"""How far work has come: shown in bars on stderr, and told to a page or a benchmark that shows it in its own way."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from threading import Event, Thread
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY = 0.5
"""Seconds after which work is shown that is mostly done sooner."""
_SHOWN = ContextVar("shown", default=False)
Hear = Callable[[str, int, int], object]
"""Is told what is counted, how many are done, and of how many."""
_HEARD = ContextVar[Hear | None]("heard", default=None)


@contextmanager
def shown(yes: bool = True) -> Iterator[None]:
    """Show bars for work that takes longer than `DELAY`, such as reading, verifying and writing files."""
    token = _SHOWN.set(yes)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def tell(hear: Hear | None) -> None:
    """From now on tell `hear`, after every step of any work, how far that is."""
    _HEARD.set(hear)


@contextmanager
def counting(title: str, of: int, done: int = 0, progress: bool = False, **how: object) -> Iterator[Callable[[], None]]:
    """Steps of some work, counted in a bar if it is to be shown; call what it yields after each. `how` is for tqdm."""
    counts = count(done + 1)
    with tqdm(total=of, initial=done, desc=title, disable=not progress, **{"leave": False, **how}) as bar:

        def step() -> None:
            """One more is done."""
            bar.update()
            number = next(counts)
            if hear := _HEARD.get():
                hear(title, number, of)

        yield step


def counted(numbers: range, title: str, progress: bool, of: int | None = None, **how: object) -> Iterator[int]:
    """The numbers of steps, each counted once it is done; `of` is how many there are with those done before."""
    done = 0 if of is None else of - len(numbers)
    with counting(title, done + len(numbers), done, progress, **how) as step:
        for k in numbers:
            yield k
            step()


def say(line: str, progress: bool) -> None:
    """A line beside the bars on stderr, if these are to be shown."""
    if progress:
        tqdm.write(line, file=sys.stderr)


@contextmanager
def every_second(do: Callable[[], object]) -> Iterator[None]:
    """Do something once a second, beside the work."""
    over = Event()

    def tick() -> None:
        while not over.wait(1):
            do()

    ticking = Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        over.set()
        ticking.join()


@contextmanager
def underway(title: str, progress: bool | None = None) -> Iterator[None]:
    """Work that cannot be counted: on a terminal a line with its seconds, taken away in the end.

    Without `progress` it is shown where `shown` says so.
    """
    unwanted = not (_SHOWN.get() if progress is None else progress)
    bar = tqdm(desc=title, bar_format="{desc} … {elapsed}", disable=unwanted or None, leave=False)
    with bar, every_second(bar.refresh):
        yield


def through(items: Collection[T], title: str) -> Iterator[T]:
    """Modules of a file, counted where `shown` says so, if they take long."""
    return iter(tqdm(items, title, disable=not _SHOWN.get(), delay=DELAY, leave=False))
