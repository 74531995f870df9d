"""Jobs on a Ray cluster (`pip install 'duolora[ray]'`). Nothing else here knows Ray."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from duolora.bench.workers import TRIES, tried
from duolora.errors import InputError

Job = TypeVar("Job")


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
