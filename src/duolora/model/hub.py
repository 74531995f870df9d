"""Whether the hub can be reached, and what is said where it gives nothing."""

import errno
from functools import cache

from huggingface_hub import get_session
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError

from duolora.errors import InputError, reason

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors of this machine's disk."""
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


def not_downloaded(name: str, error: Exception) -> InputError:
    """What is said of a hub id that could not be read: this machine's disk, a licence, or what the hub answered."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK:
            return InputError(
                f"{name}: cannot be kept in {HF_HUB_CACHE}: {reason(seen)}; mend that, or name another place by HF_HOME"
            )
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{name}: the hub gives it only to those who have accepted its licence; do so on its page, then "
            "`hf auth login`"
        )
    why = reason(error).rstrip(".") if hub_answers() else "it does not answer"
    return InputError(
        f"{name}: no such folder here, and the hub gave no model of that id as safetensors ({why}); check the name and "
        "the connection, or give the path of a local copy"
    )
