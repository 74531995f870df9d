"""Jobs on all cores, devices or machines: a failed one is reported and the others are finished."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import RawArray
from queue import SimpleQueue
from typing import Any, TypeVar

from tqdm import tqdm

from duolora.errors import DuoLoRAError, InputError
from duolora.progress import every_second, tell

Job = TypeVar("Job")
CROWD = 8
"""Processes that share a GPU on a small base, where a lone one waits for Python most of the time: 1, 4, 8 and 16 made
13, 40, 58 and 59 steps a second on an H100 (`docs/log.md`)."""
TRIES = 2
"""How often a job is begun whose process dies, before it is reported."""
WORDS = 60
"""Bytes for what a process says of how far it is."""


def run_all(
    work: Callable[[Job], None],
    jobs: Sequence[Job],
    title: str,
    workers: int | None = None,
    progress: bool = True,
    ray: str | None = None,
) -> Iterator[tuple[Job, str]]:
    """Do all jobs; yields those that failed with why. The order of the jobs says nothing about the order of the work.

    Args:
        work: what is done with a job; it and the jobs must be picklable by name.
        jobs: what there is to do.
        title: of the progress bar.
        workers: processes, by default one for each GPU, or for each core where there is none. With one it happens in
            this process.
        progress: show a bar on stderr.
        ray: the address of a Ray cluster that does it instead, or "local" for one of `workers` on this machine.

    Raises:
        InputError: Ray is asked for and is not installed, or cannot be reached.
    """
    if not jobs:
        return
    devices = _devices()
    count = min(workers or len(devices) or os.cpu_count() or 1, len(jobs))
    lines = [RawArray("c", WORDS) for _ in range(count)]
    if ray is not None:
        ended = on_cluster(work, jobs, ray, workers)
    elif count == 1:
        ended = _here(work, jobs, lines[0])
    else:
        ended = _in_processes(work, jobs, lines, devices)
    bar = tqdm(total=len(jobs), desc=title, disable=not progress)

    def show() -> None:
        """Put what each process says behind the bar."""
        said = (line.value.decode(errors="replace") for line in lines)
        bar.set_postfix_str(", ".join(filter(None, said)))

    with bar, every_second(show):  # how far each process says that it is
        for job, error in ended:
            bar.update()
            if error:
                yield job, error


def _hear(line: Any) -> None:
    """Let this process write into the line, which others read, how far its work is; without a lock, so none is left."""

    def write(title: str, done: int, of: int) -> None:
        """Say in the line how far the work is."""
        line.value = f"{title} {done}/{of}".encode()[: WORDS - 1]

    tell(write)


def _here(work: Callable[[Job], None], jobs: Sequence[Job], line: Any) -> Iterator[tuple[Job, str]]:
    """Every job with its error, in this process."""
    for job in jobs:
        _hear(line)
        try:
            error = tried(work, job)
        finally:
            tell(None)
        yield job, error


def tried(work: Callable[[Job], None], job: Job) -> str:
    """Do a job; returns why it failed, with a traceback where no message of ours says it, or nothing."""
    try:
        work(job)
    except DuoLoRAError as error:
        return str(error)
    except Exception:  # whatever it is, it must not stop the others
        return traceback.format_exc()
    return ""


def crowd() -> int | None:
    """How many processes suit a small base: `CROWD` for each GPU as far as there are cores; None without a GPU."""
    devices = _devices()
    return min(CROWD * len(devices), os.cpu_count() or 1) if devices else None


def _devices() -> list[str]:
    """The GPUs that may be used, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(k) for k in range(count)]


def _in_processes(
    work: Callable[[Job], None], jobs: Sequence[Job], lines: Sequence[Any], devices: Sequence[str]
) -> Iterator[tuple[Job, str]]:
    """Every job with its error, from a process for each line; one that dies (killed, no memory) takes no other with it.

    Lines are shared memory.
    """
    count = len(lines)

    def process(number: int) -> ProcessPoolExecutor:
        """A process of its share of the cores, one of the GPUs, and a line."""
        threads = max(1, (os.cpu_count() or 1) // count)
        device = devices[number % len(devices)] if devices else None
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare, (threads, device, lines[number]))

    free: SimpleQueue[tuple[int, ProcessPoolExecutor]] = SimpleQueue()
    for number in range(count):
        free.put((number, process(number)))

    def done(job: Job) -> str:
        """Do a job in the next free process, begun anew if it dies; returns the error, if there was one."""
        number, own = free.get()
        try:
            for _ in range(TRIES):
                try:
                    return own.submit(tried, work, job).result()
                except BrokenProcessPool:
                    own.shutdown()
                    own = process(number)
            return f"its process died {TRIES} times; perhaps the memory is too small for {count} workers"
        finally:
            free.put((number, own))

    threads = ThreadPoolExecutor(count)
    try:
        waiting = {threads.submit(done, job): job for job in jobs}
        for ended in as_completed(waiting):
            yield waiting[ended], str(ended.exception() or "") or ended.result()
    finally:
        threads.shutdown(cancel_futures=True)
        while not free.empty():
            free.get()[1].shutdown()


def _prepare(threads: int, device: str | None, line: Any) -> None:
    """One process of several has a share of the cores, one GPU, and a line for how far it is."""
    _hear(line)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for torch, which is imported with the first job that needs it
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def on_cluster(
    work: Callable[[Job], None], jobs: Sequence[Job], address: str, workers: int | None = None
) -> Iterator[tuple[Job, str]]:
    """Every job with its error, empty if there was none, as they end. One whose worker dies is begun again.

    A job takes a GPU where the cluster has any, else a core. All machines must have this package, and this working
    directory under the same path on a disk that they share.

    Args:
        work: what is done with a job; it and the jobs must be picklable by name.
        jobs: what there is to do.
        address: of the cluster's head, such as "10.0.0.1:6379" or "auto", or "local" for a new one on this machine.
        workers: how many of this machine's cores a "local" one has; by default all.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = _connected(address, workers)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # max_calls=0: a process stays when a job has ended, so that it loads the base once
    begin = ray.remote(num_gpus=gpus, max_calls=0, max_retries=TRIES - 1)(_tried_in).remote
    waiting = {begin(os.getcwd(), work, job): job for job in jobs}
    try:
        while waiting:
            ended, _ = ray.wait(list(waiting))
            try:
                error = ray.get(ended[0])
            except ray.exceptions.RayError as died:
                error = f"its worker died {TRIES} times: {died}"
            yield waiting.pop(ended[0]), error
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def _connected(address: str, workers: int | None) -> Any:
    """Ray, told to keep to itself, and connected until this process ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray: expected the package ray, found none ({error}); pip install 'duolora[ray]'") from None
    if ray.is_initialized():
        return ray
    local = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), 10).close()  # Ray itself waits for many minutes
        ray.init(address, log_to_driver=False, logging_level="error", **local)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--ray {address}: no cluster could be reached there ({error}); start one with `ray start --head`"
        ) from error
    return ray


def _tried_in(folder: str, work: Callable[[Job], None], job: Job) -> str:
    """`tried` in the folder that the caller was in, so that relative paths mean the same."""
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{folder}: expected on every machine of the cluster, as the folder that all share ({error})"
    return tried(work, job)
