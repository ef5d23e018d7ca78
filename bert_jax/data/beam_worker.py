"""The process that works for Beam on this machine: Beam's own, but it prints errors only.

It is started by ``bert_jax.data.beam_direct`` with a directory, where it leaves its number.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Works until the program that started it has no more to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is that program's to handle
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    Path(sys.argv[1], str(os.getpid())).touch()
    errors = logging.StreamHandler()
    errors.setLevel(logging.ERROR)
    logging.basicConfig(handlers=[errors])  # before Beam is imported, which logs as it is
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it was killed."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


if __name__ == "__main__":
    main()
