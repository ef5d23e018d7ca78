"""A stand-in for ``gcloud compute tpus`` whose slice has two workers: two home directories.

It records its calls in ``calls`` of the directory that STUB_DIRECTORY names. What is sent to a
worker by ssh is run there, here. ``plan`` in that directory has a line for each time that a log is
followed and more is to happen: ``preempt`` (the workers, which hold, die when they are ready; the
slice is PREEMPTED, and the next look at it fails) or ``disconnect``. A log that is followed to the
end ends when the processes of all workers have.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

DIRECTORY = Path(os.environ["STUB_DIRECTORY"])
WORKERS = [0, 1]


def home(worker: int) -> Path:
    return DIRECTORY / f"worker_{worker}"


def state_file(kind: str) -> Path:
    return DIRECTORY / f"state of {kind}"


def pids() -> list[int]:
    """The processes that were started on the workers; some may have ended."""
    files = [home(worker) / "bert_jax/pid" for worker in WORKERS]
    return [int(file.read_text()) for file in files if file.exists()]


def kill_workers() -> None:
    for pid in pids():
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def create() -> None:
    state_file("tpu-vm").write_text("READY")
    for worker in WORKERS:
        home(worker).mkdir()


def delete(kind: str) -> None:
    kill_workers()
    state_file(kind).unlink()
    state_file("tpu-vm").unlink(missing_ok=True)
    for worker in WORKERS:
        shutil.rmtree(home(worker), ignore_errors=True)


def describe(kind: str) -> int:
    if (DIRECTORY / "forbidden").exists():
        print("ERROR: (gcloud) PERMISSION_DENIED: you may not look", file=sys.stderr)
        return 1
    if (DIRECTORY / "hiccup").exists():
        (DIRECTORY / "hiccup").unlink()
        print("ERROR: (gcloud) UNAVAILABLE: the network is down", file=sys.stderr)
        return 1
    if not state_file(kind).exists():
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    waiting = DIRECTORY / "states on the way"  # of a queued resource, one line for each look
    if kind == "queued-resources" and waiting.exists():
        state, *others = waiting.read_text().splitlines()
        waiting.write_text("\n".join(others))
        if not others:
            waiting.unlink()
            create()
        print(state)
    else:
        print("WARNING: something of no importance", file=sys.stderr)
        print(state_file(kind).read_text())
    return 0


def ssh(worker: str, command: str) -> int:
    if state_file("tpu-vm").read_text() != "READY":
        return 255
    plan = DIRECTORY / "plan"
    if "worker_follow" in command and plan.exists():
        event, *others = plan.read_text().splitlines()
        plan.write_text("\n".join(others))
        if not others:
            plan.unlink()
        if event == "preempt":
            with open(DIRECTORY / "ready") as ready:
                for _ in WORKERS:
                    ready.readline()
            kill_workers()
            (DIRECTORY / "hiccup").touch()
            state_file("tpu-vm").write_text("PREEMPTED")
            if state_file("queued-resources").exists():
                state_file("queued-resources").write_text("SUSPENDED")
        return 255
    codes = []
    for number in WORKERS if worker == "all" else [int(worker)]:
        place = {"HOME": str(home(number)), "HOSTNAME": f"w-{number}", "STUB_WORKER": str(number)}
        done = subprocess.run(
            ["bash", "-c", command], cwd=home(number), env=dict(os.environ) | place, check=False
        )
        codes.append(done.returncode)
    if "worker_follow" in command:
        for pid in pids():
            subprocess.run(["tail", "--follow", f"--pid={pid}", "/dev/null"], check=True)
    return max(codes)


def main() -> int:
    arguments = sys.argv[1:]
    with open(DIRECTORY / "calls", "a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments[:2] == ["compute", "tpus"]
    kind, verb = arguments[2:4]
    flags = dict(
        flag.split("=", 1) for flag in arguments[4:] if flag.startswith("--") if "=" in flag
    )
    match kind, verb:
        case _, "describe":
            return describe(kind)
        case "tpu-vm", "create":
            if (DIRECTORY / "no capacity").exists():
                return 1
            create()
        case "queued-resources", "create":
            state_file(kind).write_text("ACTIVE")
            (DIRECTORY / "states on the way").write_text("WAITING_FOR_RESOURCES\nPROVISIONING")
        case _, "delete":
            delete(kind)
        case "tpu-vm", "scp":
            name = arguments[5].removeprefix("mine:")
            for worker in WORKERS:
                shutil.copy(arguments[4], home(worker) / name)
        case "tpu-vm", "ssh":
            return ssh(flags["--worker"], flags["--command"])
        case _:
            raise ValueError(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
