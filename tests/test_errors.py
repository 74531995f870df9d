"""Messages are in words, not in Python's."""

import pytest

from duolora.errors import InputError, reason
from duolora.textfiles import read_lines


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory"),
        (KeyError("person"), "person is missing"),
        (ValueError("line one\nline two"), "line one"),
        (TypeError(), "TypeError"),
        (InputError("as it is"), "as it is"),
    ],
)
def test_reasons_are_in_words(error, said):
    assert reason(error) == said


def test_a_missing_file_is_named_without_numbers(tmp_path):
    with pytest.raises(InputError, match=r"\(No such file or directory\)"):
        read_lines(tmp_path / "none.txt")
