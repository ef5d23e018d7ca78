"""Stopping a run of the real program from outside."""

import signal
import subprocess


def kill_at(process: subprocess.Popen[str], step: int, number: signal.Signals) -> str:
    """Sends a signal when the program says that it is at ``step``; returns all that it said."""
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"step {step:,}/"):
                process.send_signal(number)
    return "".join(said)
