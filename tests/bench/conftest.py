"""What this folder's tests share."""

import pytest

from duolora.api import train
from duolora.model.architectures import modules_within
from duolora.model.defaults import BaseDefaults


@pytest.fixture(scope="module", autouse=True)
def quick_files(unloaded: None) -> None:
    """Files are written without diffusers' own loader."""


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRAs of one step and of every fifth attention layer: all that follows costs by the module."""
    quick = BaseDefaults({"rank": 2, "steps": 1, "batch": 1})
    monkeypatch.setattr(train, "read_defaults", lambda base: quick)
    monkeypatch.setattr(train, "modules_within", lambda shapes, blocks: modules_within(shapes, blocks)[::5])
