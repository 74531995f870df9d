"""A hub that is away, or there and silent, is told from one that answers."""

import errno
import shutil
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import create_server
from threading import Thread

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub.errors import GatedRepoError

from duolora.errors import InputError
from duolora.metrics import vision
from duolora.metrics.encoders import load_embedder
from duolora.model import files, hub
from duolora.model.base import load_base


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test asks anew, and no proxy is asked for a place on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


@pytest.fixture
def silent(monkeypatch):
    """A hub that accepts connections and never answers."""
    with create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        yield listening


def test_whatever_answers_is_a_hub(monkeypatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.hub_answers()


def test_a_hub_without_a_connection_does_not_answer(monkeypatch):
    with create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub.hub_answers()


def test_of_a_silent_hub_only_what_was_downloaded_before_is_used(silent, base_folder, monkeypatch):
    with pytest.raises(InputError, match="nobody/nothing: no such folder here, and the hub gave no model") as caught:
        load_base("nobody/nothing", "cpu")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        DiffusionPipeline, "download", lambda name, **how: str(base_folder) if how["local_files_only"] else "asked"
    )
    assert load_base("owner/name", "cpu")


def test_a_connection_that_breaks_is_one_line(monkeypatch):
    class Broken(Exception):
        """As httpx's, which are no OSErrors."""

    def download(name, **how):
        raise Broken("peer closed connection")

    monkeypatch.setattr("duolora.model.files.hub_answers", lambda: True)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(InputError, match="the hub gave no model"):
        load_base("nobody/nothing", "cpu")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "kept in .*: No space left on device; .* HF_HOME"),
        (RuntimeError("the transfer stopped"), r"no model of that id as safetensors \(the transfer stopped\); check"),
    ],
)
def test_a_download_that_fails_says_what_it_was(monkeypatch, problem, said):
    """Not that the hub has no such model."""

    def download(name, **how):
        if isinstance(problem, OSError):
            raise ValueError("an error while files were fetched") from problem
        raise problem

    for place in (hub, files):
        monkeypatch.setattr(place, "hub_answers", cache(lambda: True))
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(InputError, match=said):
        load_base("nobody/nothing", "cpu")


def test_a_model_behind_a_licence_says_so(monkeypatch):
    refused = GatedRepoError.__new__(GatedRepoError)
    assert "accepted its licence" in str(hub.not_downloaded("owner/name", refused))


WHOLE = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
HALVES = [name.replace(".safetensors", ".fp16.safetensors") for name in WHOLE]


@pytest.mark.parametrize(
    ("dtype", "listed", "cached", "variant"),
    [
        ("float32", [*WHOLE, *HALVES], False, None),
        ("float16", [*WHOLE, *HALVES], False, "fp16"),
        ("bfloat16", [*WHOLE, *HALVES], False, "fp16"),
        ("float16", [*WHOLE, *HALVES], True, None),
        ("float16", WHOLE, False, None),
        ("float16", [*WHOLE, HALVES[1]], False, None),
    ],
)
def test_half_of_the_bytes_for_half_precision(base_folder, monkeypatch, dtype, listed, cached, variant):
    """Where the hub has them for the UNet, and those in 32 bits were not downloaded before."""
    asked = []

    def download(name, **how):
        asked.append(how["variant"])
        return str(base_folder)

    monkeypatch.setattr(files, "hub_answers", lambda: True)
    monkeypatch.setattr(files, "list_repo_files", lambda name: [*listed, "model_index.json"])
    monkeypatch.setattr(files, "try_to_load_from_cache", lambda name, file: f"/cache/{file}" if cached else None)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    load_base("owner/name", "cpu", dtype)
    assert asked == [variant]


def test_halves_are_read_where_the_whole_is_not_there(base_folder, tmp_path, monkeypatch):
    """A cache with both for the UNet, and a hub that is away: the text encoders are there in 16 bits only."""
    there = shutil.copytree(base_folder, tmp_path / "cached")
    for file in [*there.glob("*/*.safetensors")]:
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
        if file.parent.name.startswith("text_encoder"):
            file.unlink()
    asked = []

    def download(name, **how):
        asked.append(how["variant"])
        if how["variant"] is None:
            raise FileNotFoundError("incomplete")
        return str(there)

    monkeypatch.setattr(files, "hub_answers", lambda: False)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert load_base("owner/name", "cpu", "float32").text_encoders
    assert asked == [None, "fp16"]


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked, offline = [], []

    class Away:
        def head(self, place, timeout):
            asked.append(place)
            raise OSError("no route")

    def load(source, local_files_only, **options):
        offline.append(local_files_only)
        raise OSError("not in the cache")

    monkeypatch.setattr(hub, "get_session", Away)
    monkeypatch.setattr(vision.AutoConfig, "from_pretrained", load)
    for _ in range(2):
        with pytest.raises(InputError, match="no such folder here, and the hub gave no"):
            load_embedder("dino", "nobody/no-such-model", "cpu")
    assert len(asked) == 1
    assert offline and all(offline)
