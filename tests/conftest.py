"""Shapes and types in annotations are enforced while testing, and only then."""

import os
from tempfile import TemporaryDirectory

from jaxtyping import install_import_hook

hook = install_import_hook("duolora", "typechecker.checked")

cache = TemporaryDirectory(prefix="duolora-cache-")
os.environ["XDG_CACHE_HOME"] = cache.name
"""Nothing that a test keeps for later runs is put among what the user has kept."""

pytest_plugins = ["lora_fixtures"]
