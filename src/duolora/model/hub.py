"""Whether the hub can be reached."""

from functools import cache

from huggingface_hub import get_session
from huggingface_hub.constants import ENDPOINT

PATIENCE = 5.0
"""Seconds that the hub may take to answer."""


@cache
def hub_answers() -> bool:
    """Whether the hub answers at all, asked once: its library finds out anew for every file, or waits for ever."""
    try:
        get_session().head(ENDPOINT, timeout=PATIENCE)
    except Exception:  # requests' or httpx's own, by the hub library's version
        return False
    return True
