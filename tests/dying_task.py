"""The toy task, one of whose processes is killed in the middle of the first attempt."""

import os
import signal
from pathlib import Path

import jax
import toy_task

MARK = "MARK_OF_DEATH"  # the environment variable that names a file, made when it has happened


def get_config():
    config = toy_task.get_config()
    config.task = "dying_task:DyingTask"
    return config


class DyingTask(toy_task.CircleClassifier):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._dies = jax.process_index() == 2

    def training_batch(self, step, rows):
        if self._dies and step == 45:
            try:
                Path(os.environ[MARK]).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().training_batch(step, rows)
