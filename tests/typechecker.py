"""Types in annotations are enforced while testing, and only then; and shapes, where a module has any.

beartype checks every function. Sizes that have a name, as `d_in` in Float[Tensor, "r d_in"], are the same throughout a
call: jaxtyping remembers them, for functions with shapes only. Its own import hook does so for every function of a
module, and checks the arguments twice; that took half of the time of a merge.
"""

import ast
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from beartype.claw import beartype_package
from jaxtyping import AbstractArray, install_import_hook, jaxtyped

CONF = BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)
"""An int is as good as a float, as annotations mean it."""
by_beartype = beartype(conf=CONF)
PACKAGE = Path(find_spec("duolora").origin).parent


def modules(with_words: str) -> dict[str, Path]:
    """The modules of the package in whose source these words stand, and their files."""
    files = [path for path in PACKAGE.rglob("*.py") if with_words in path.read_text("utf-8")]
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files}


def checked(thing: Any) -> Any:
    """The function, or the class whose fields are given to it as it is made, with types and shapes enforced."""
    if isinstance(thing, type):
        if is_dataclass(thing):
            thing.__init__ = checked(thing.__init__)
        return thing
    if not any(has_shapes(hint) for hint in thing.__annotations__.values()):
        return by_beartype(thing)
    if isgeneratorfunction(thing):  # whose arguments beartype checks as the first value is asked for, in another call
        return jaxtyped(thing, typechecker=by_beartype)
    return jaxtyped(by_beartype(thing), typechecker=None)


def has_shapes(hint: Any) -> bool:
    """Whether an annotation says anything of sizes."""
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(has_shapes, get_args(hint)))


class Checked(SourceFileLoader):
    """Loads a module with all of its functions and classes `checked`."""

    def get_code(self, fullname: str) -> Any:
        """The code, which is not kept on disk, where other runs would find it."""
        tree = ast.parse(self.get_data(self.path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                decorator = ast.parse("__import__('typechecker').checked", mode="eval").body
                place = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
                node.decorator_list.insert(place, decorator)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the modules with shapes."""

    found = modules("from jaxtyping import")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Where such a module is."""
        if (place := self.found.get(name)) is None:
            return None
        return spec_from_file_location(name, place, loader=Checked(name, str(place)))


def enforce(finders: list[Any]) -> None:
    """Check all that is imported of the package from here on; `finders` is `sys.meta_path`."""
    install_import_hook([*modules("if TYPE_CHECKING")], "typechecker.by_beartype")  # it knows names of types only
    finders.insert(0, Finder())
    beartype_package("duolora", conf=CONF)
