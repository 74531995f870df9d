"""Jobs on all cores: one process each, a failed one reported and the others finished."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")


def _prepare(threads: int) -> None:
    """One process of several must not take all cores for itself."""
    import torch

    torch.set_num_threads(threads)


def _tried(work: Callable[[Job], None], job: Job) -> str:
    try:
        work(job)
    except Exception:  # whatever it is, it must not stop the other cells
        return traceback.format_exc()
    return ""


def run_all(
    work: Callable[[Job], None], jobs: Sequence[Job], title: str, workers: int | None = None, progress: bool = True
) -> Iterator[tuple[Job, str]]:
    """Do all jobs; yields those that failed with their traceback. With one worker it happens in this process.

    `work` and the jobs must be picklable by name. The order of the jobs says nothing about the order of the work.
    """
    cores = os.cpu_count() or 1
    workers = min(workers or cores, max(1, len(jobs)))
    bar = tqdm(total=len(jobs), desc=title, disable=not progress or not jobs)
    if workers == 1:
        for job in jobs:
            error = _tried(work, job)
            bar.update()
            if error:
                yield job, error
        bar.close()
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _prepare, (max(1, cores // workers),)) as pool:
        waiting = {pool.submit(_tried, work, job): job for job in jobs}
        for done in as_completed(waiting):
            error = str(done.exception() or "") or done.result()
            bar.update()
            if error:
                yield waiting[done], error
    bar.close()
