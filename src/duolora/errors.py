"""Errors that a person can act on.

    DuoLoRAError        the job could not be done (exit status 1)
    ├── FileRefused     an input file is not something we read
    ├── BaseMismatch    an adapter does not fit the base model
    └── InputError      another input is missing or wrong

Every message says which file, key or value, what was expected, what came, and what to do.
"""


def reason(error: BaseException) -> str:
    """What went wrong, in words: without the names of Python's exceptions, their numbers, or more than a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!s} is missing"
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


class DuoLoRAError(Exception):
    """The job could not be done; the message says why and what to do."""


class Notice(UserWarning):
    """Something is done otherwise than one may expect; the commands print it as one line on stderr."""


class FileRefused(DuoLoRAError):
    """An input file is missing, damaged, unsafe or of a kind that we do not read."""


class BaseMismatch(DuoLoRAError):
    """An adapter was made for another base model than the one it is used with."""


class InputError(DuoLoRAError):
    """An argument, prompt, image or folder cannot be used as given."""
