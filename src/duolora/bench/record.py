"""What is recorded with every measurement: the commit, the versions, the hardware."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from duolora.provenance import versions


def facts(device: str, seed: int) -> dict[str, Any]:
    """Where and with what a measurement was made."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    hardware = {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"commit": _commit(), "versions": versions(), "hardware": hardware, "seed": seed}


def _commit() -> str | None:
    """The commit of the working tree that this file is in, with a mark if it was changed; None outside one."""
    here = Path(__file__).parent
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(asked, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
