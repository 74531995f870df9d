"""Types are enforced in all tests, and what the package keeps for later runs is not put among the user's."""

import os
import sys
from tempfile import TemporaryDirectory

from typechecker import enforce

enforce(sys.meta_path)

cache = TemporaryDirectory(prefix="duolora-cache-")
os.environ["XDG_CACHE_HOME"] = cache.name
"""Nothing that a test keeps for later runs is put among what the user has kept."""

pytest_plugins = ["lora_fixtures"]
