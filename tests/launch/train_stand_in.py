"""What the launchers start here in place of ``bert_jax.train``: a process that ends as it is told.

    -m bert_jax.train --workdir DIR [--process I] [--die I:CODE] [--hold] [--stubborn] [--times N]

Each process adds a line of JSON to ``DIR/started``. With ``--die`` process ``I`` then ends with
``CODE``, or by signal ``-CODE``; with ``--hold`` a process says that it is ready in the FIFO
``DIR/ready`` and waits for SIGTERM or Ctrl-C, which it answers as ``bert_jax.train`` does. A
stubborn one is ended by SIGKILL alone. After ``--times`` attempts all ends well. On the workers of
the stand-in for gcloud the environment tells the directory and the process.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--process", type=int, default=int(os.environ.get("STUB_WORKER", "0")))
    parser.add_argument("--die", default="")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--times", type=int)
    flags, _ = parser.parse_known_args()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.alarm(100)  # nothing stays behind when a test fails
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    workdir = Path(os.environ.get("STUB_DIRECTORY", flags.workdir))
    with open(workdir / "started", "a") as started:
        line = {"process": flags.process, "argv": sys.argv[1:], "env": dict(os.environ)}
        started.write(json.dumps(line) + "\n")
    process, _, code = flags.die.partition(":")
    print(f"process {flags.process} is here", flush=True)
    attempt = sum(
        json.loads(line)["process"] == flags.process
        for line in (workdir / "started").read_text().splitlines()
    )
    if flags.times is not None and attempt > flags.times:
        return 0
    if process == str(flags.process):
        print("its last words", file=sys.stderr, flush=True)
        if int(code) < 0:
            os.kill(os.getpid(), -int(code))
        return int(code)
    if flags.hold:
        # Opened for reading too, it does not wait for the test to read it.
        ready = os.open(workdir / "ready", os.O_RDWR)
        os.write(ready, b"ready\n")
    if flags.hold or flags.stubborn:
        number = signal.sigwait(signals)
        if flags.stubborn:
            signal.sigwait({signal.SIGUSR1})
        # A second Ctrl-C would interrupt the real program at once, before it has saved.
        again = signal.sigtimedwait({signal.SIGINT}, 0.3)
        return 1 if again else {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    return 0


if __name__ == "__main__":
    sys.exit(main())
