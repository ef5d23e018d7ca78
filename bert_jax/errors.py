"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file, key or value at fault and says what to do about
    it. Entry points print it after ``error:`` and exit with code 2; no traceback is shown.
    """
