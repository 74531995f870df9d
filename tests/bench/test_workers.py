"""Jobs in processes and on a Ray cluster: all are done, what fails is reported, what is killed is begun again."""

import os
import re
import signal
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs_by_name import named

from duolora.bench import workers
from duolora.bench.cells import cell as cells, pairs
from duolora.bench.cells.cell import Cell
from duolora.bench.cells.pairs import suite
from duolora.bench.run import measured
from duolora.bench.tables.rows import FLOOR, Row
from duolora.bench.workers import run_all
from duolora.errors import InputError
from duolora.model.sample import sample_images
from processes import FORKED


@pytest.fixture(params=[None, "local"], ids=["processes", "ray"])
def ray(request, monkeypatch):
    """Where jobs are done: in processes of this machine, or by a real cluster."""
    if request.param:
        package = pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # its workers import this file
    yield request.param
    if request.param:
        package.shutdown()


def test_one_that_fails_stops_no_other(tmp_path, ray, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = ["a", "raises", "b", "dies", "c", "dies once", "d"]
    failed = dict(run_all(named, jobs, "", 2, progress=False, ray=ray))
    assert failed.keys() == {"raises", "dies"}
    assert failed["raises"].endswith("ValueError: as asked\n")
    assert "died 2 times" in failed["dies"]
    tries = {name: len((tmp_path / name).read_text().split()) for name in jobs}
    assert tries == dict.fromkeys(jobs, 1) | {"dies": 2, "dies once": 2}
    assert str(os.getpid()) not in {word for name in jobs for word in (tmp_path / name).read_text().split()}


@pytest.mark.parametrize("count", [1, 2], ids=["here", "processes"])
def test_how_far_each_process_is_stands_beside_the_bar(tmp_path, monkeypatch, capsys, count):
    monkeypatch.chdir(tmp_path)
    assert not list(run_all(named, ["counts", "a"][:count], "Cells", count))
    assert re.search(r"Counting [1-3]/3", capsys.readouterr().err)


@pytest.mark.parametrize(("devices", "cores", "found"), [([], 4, None), (["0"], 16, 8), (["0", "1"], 12, 12)])
def test_a_small_base_shares_a_gpu_as_far_as_there_are_cores(monkeypatch, devices, cores, found):
    monkeypatch.setattr(workers, "_devices", lambda: devices)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: cores)
    assert workers.crowd() == found


def quickly(*values: object) -> Cell:
    """A cell as a worker unpickles it: it generates in one step, and the first that generates is killed at that."""
    pairs.COUNT = 1
    cell = QuickCell(*values)
    with (cell.out / "workers").open("a") as file:
        file.write(f"{os.getpid()}\n")
    cells.sample_images = partial(draw_or_die, cell.out / "killed")
    return cell


def draw_or_die(mark: Path, *arguments: object, **options: object) -> object:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return sample_images(*arguments, **options | {"steps": 1})
    mark.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class QuickCell(Cell):
    def __reduce__(self):
        return quickly, tuple(getattr(self, field.name) for field in fields(self))


def test_every_cell_is_finished_though_a_worker_is_killed(tmp_path, monkeypatch, quick_training):
    monkeypatch.setattr(workers, "multiprocessing", SimpleNamespace(get_context=lambda _: FORKED))
    table = [QuickCell(tmp_path, suite()[0], row) for row in (FLOOR, Row("naive", "naive"))]
    for job in table[1].needs():
        job.train()
    assert not measured(table, 2, False)
    assert all(cell.done for cell in table)
    assert len(list((tmp_path / "loras").iterdir())) == 2
    seen = set((tmp_path / "workers").read_text().split())
    assert (tmp_path / "killed").read_text() in seen
    assert str(os.getpid()) not in seen
    assert len(seen) == 3, "two, and another in the place of the one that was killed"
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert not measured(table, 2, False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == stamps


def test_a_cluster_that_is_not_there():
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: no cluster could be reached"):
        list(run_all(named, ["a"], "", ray="127.0.0.1:1"))
