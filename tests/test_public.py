"""What `import duolora` offers: typed for an editor, lazy for a program, and the same for both."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import duolora


def test_a_type_checker_sees_what_a_program_gets():
    tree = ast.parse(Path(duolora.__file__).read_text("utf-8"))
    (typed,) = (n for n in tree.body if isinstance(n, ast.If) and isinstance(n.test, ast.Name))
    seen = {n.module: tuple(a.name for a in n.names) for n in typed.body if isinstance(n, ast.ImportFrom)}
    assert {module: set(names) for module, names in seen.items()} == {
        module: set(names) for module, names in duolora._EXPORTS.items()
    }
    assert set(duolora.__all__) == {name for names in seen.values() for name in names} | {"__version__"}


@pytest.mark.parametrize("name", duolora.__all__)
def test_every_public_name_is_there(name):
    assert getattr(duolora, name) is not None


def test_completion_offers_the_public_names_alone():
    assert {name for name in dir(duolora) if not name.startswith("__")} == {*duolora.__all__} - {"__version__"}
    assert "__version__" in dir(duolora)


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = "import sys, duolora; duolora.MergeOptions, duolora.TrainOptions, duolora.InputError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "numpy"} & set(done.stdout.split())


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'marge'"):
        duolora.marge  # noqa: B018
