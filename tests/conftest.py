"""Types in annotations are enforced while testing, and only then; and shapes, where a module has any.

jaxtyping wraps every function of a module: over the whole package that took half of the time of a merge.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from beartype.claw import beartype_package
from jaxtyping import install_import_hook

from typechecker import CONF

PACKAGE = Path(find_spec("duolora").origin).parent
THEIRS = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if any(word in path.read_text("utf-8") for word in ("from jaxtyping import", "if TYPE_CHECKING"))
]
"""The modules that jaxtyping checks: those with shapes, and with names that exist for a type checker alone."""
hook = install_import_hook(THEIRS, "typechecker.checked")
beartype_package("duolora", conf=CONF)

cache = TemporaryDirectory(prefix="duolora-cache-")
os.environ["XDG_CACHE_HOME"] = cache.name
"""Nothing that a test keeps for later runs is put among what the user has kept."""

pytest_plugins = ["lora_fixtures"]
