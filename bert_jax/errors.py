"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file, key or value at fault and says what to do about
    it. Entry points print it after ``error:`` and exit with code 2; no traceback is shown.
    """


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
