"""What this folder's tests share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_files(unloaded: None) -> None:
    """Files are written without diffusers' own loader."""
