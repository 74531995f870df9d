"""Jobs for `test_workers.py`, in a file that a worker imports at once."""

import os
import signal
from pathlib import Path
from time import sleep

from duolora.progress import counted


def named(job: str) -> None:
    """What a job's name says, after it has told which process does it."""
    path = Path(job)
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if path.name == "raises":
        raise ValueError("as asked")
    if path.name == "counts":
        for _ in counted(range(3), "Counting", progress=False):
            sleep(0.7)
    if path.name == "dies" or (path.name == "dies once" and len(path.read_text().split()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
