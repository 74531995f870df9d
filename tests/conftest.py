"""Shapes and types in annotations are enforced while testing, and only then."""

from jaxtyping import install_import_hook

hook = install_import_hook("duolora", "typechecker.checked")

pytest_plugins = ["lora_fixtures"]
