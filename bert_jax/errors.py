"""The exceptions that mean anything else than "the program is wrong"."""

import errno

EXIT_USER_ERROR = 2
# What the system says of a disk that takes no more, be it of an open file, which it does not name.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file, key or value at fault and says what to do about
    it. Entry points print it after ``error:`` and exit with code 2; no traceback is shown.
    """


class Stopped(Exception):
    """A signal to all processes of the program ended one that it had started and waited for.

    Attributes:
      signal: its number.
    """

    def __init__(self, signal: int) -> None:
        """Takes the signal's number."""
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
