"""Checkpoints of a run: whole, asynchronous, few, and readable without the run that wrote them.

A checkpoint is an Orbax step directory with three items: ``params``, ``optimizer`` and ``run``, the
last a JSON object with the config, the environment, what the task must agree with (such as the
corpus's fingerprint) and what it carries along (such as the vocabulary). One that was converted
from another format has no ``optimizer``: it is there to be used and fine-tuned, not to be gone on
from.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import UserError, first_line
from bert_jax.storage import is_directory, is_remote
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.processes import is_first, wait_for_all
from bert_jax.training.sharding import parameter_name
from bert_jax.training.state import TrainState

DIRECTORY = "checkpoints"
SCORES = "scores.json"  # beside them: a checkpoint may be scored long after it was saved
# Parameters, and the moments of an optimizer, with a row for each token and rows of padding.
VOCABULARY_TABLES = ("embeddings/word", "mlm_head/bias")
# What Orbax raises where a file is missing, or not what it should be.
_DAMAGE = (KeyError, ValueError, TypeError, AttributeError, OSError)


class RunRecord(NamedTuple):
    """What a checkpoint says of its run; every field is plain JSON.

    Attributes:
      step: the number of updates made.
      config: the resolved config.
      identity: what a task must share with a checkpoint to go on from it.
      assets: texts that the model cannot be used without, by name.
      environment: versions and devices.
      notes: sentences about what changed in the middle of the run.
    """

    step: int
    config: dict[str, Any]
    identity: dict[str, Any]
    assets: dict[str, str]
    environment: dict[str, str]
    notes: list[str]


class Checkpoints:
    """The checkpoints under a run's working directory: the last few and the best.

    Args:
      workdir: the run's working directory.
      keep_last: how many of the newest to keep.
      keep_best: whether to keep the one with the lowest score besides.
      read_only: never writes or deletes; for evaluation and prediction.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep_last: int = 1,
        keep_best: bool = False,
        read_only: bool = False,
    ):
        home = epath.Path(workdir)
        if not is_remote(home):
            home = home.expanduser().resolve()
        self._directory = home / DIRECTORY
        if read_only and not is_directory(self._directory):
            raise UserError(
                f"{workdir} holds no checkpoints; give the --workdir of a run that has saved one"
            )
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._read_only = read_only
        if not read_only:
            if is_first():
                self._remove_unfinished()
            wait_for_all("unfinished checkpoints are removed")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(create=not read_only),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
        )
        self._scores_file = home / SCORES
        self._scores = self._read_scores()
        # Only who has saved deletes: a command that is refused leaves everything as it was.
        self._has_saved = False

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def committed(self) -> list[int]:
        """Waits for the save under way, then gives the steps."""
        with self._explain_full_disk():
            self._manager.wait_until_finished()
        return self.steps()

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def best(self, first_step: int = 0) -> int | None:
        """The step with the best score, the earliest of equals; None where none has a score.

        Args:
          first_step: leaves earlier ones out.
        """
        scored = [step for step in self.steps() if step in self._scores and step >= first_step]
        return min(scored, key=self._scores.__getitem__, default=None)

    def choose(self, which: str) -> int:
        """Turns ``latest``, ``best`` or a number into a step that exists.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        step = {"latest": self.latest(), "best": self.best()}.get(which)
        if step is None and which.isdecimal() and int(which) in steps:
            step = int(which)
        if step is None:
            has = f"the steps {', '.join(map(str, steps))}" if steps else "no complete checkpoint"
            raise UserError(f"{self._directory} has no checkpoint {which!r}; it has {has}")
        return step

    def note_score(self, step: int, phase: int, value: float) -> bool:
        """Notes how a step was scored, whether it is saved or not.

        Args:
          step: the number of updates made.
          phase: the number of the run's phase; later ones are better, for values of different
            phases cannot be compared.
          value: lower is better; one that is not finite is not noted.

        Returns:
          Whether no checkpoint has a better score, so that this step should be saved.
        """
        if not math.isfinite(value):
            return False
        best = self.best()
        score = (-phase, value)
        is_best = best is None or score <= self._scores[best]
        on_disk = self.steps()
        self._scores = {s: old for s, old in self._scores.items() if s in on_disk} | {step: score}
        if is_first():
            write_atomically(self._scores_file, json.dumps(self._scores).encode())
        return is_best

    def _remove_unfinished(self) -> None:
        """Removes what a kill left half-written.

        Orbax's manager would do it in a thread that it never waits for, and that fails loudly in a
        run that ends at once.
        """
        if self._directory.exists():
            for unfinished in ocp.utils.tmp_checkpoints(self._directory):
                unfinished.get().rmtree()

    def _read_scores(self) -> dict[int, tuple[int, float]]:
        if not self._scores_file.exists():
            return {}
        try:
            scores = json.loads(self._scores_file.read_text())
            return {int(step): (phase, value) for step, (phase, value) in scores.items()}
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"{self._scores_file} is damaged; restore it, or delete it to go on without "
                "knowing which checkpoint is best"
            ) from None

    def save(self, state: TrainState, record: RunRecord) -> None:
        """Saves in the background; returns when the state may be overwritten.

        Without an optimizer state (None) the checkpoint can be loaded, and no run goes on from it.

        Raises:
          UserError: this or the save before could not be written.
        """
        with self._explain_full_disk():
            self._save(state, record)

    def _save(self, state: TrainState, record: RunRecord) -> None:
        self._manager.wait_until_finished()
        # Leaves a place for the checkpoint to come, so that a kill never leaves too many.
        self.prune(max(self._keep_last - 1, 1))
        items = {
            "params": ocp.args.StandardSave(state.params),
            "run": ocp.args.JsonSave(record._asdict()),
        }
        if state.optimizer_state is not None:
            items["optimizer"] = ocp.args.StandardSave(state.optimizer_state)
        self._manager.save(record.step, args=ocp.args.Composite(**items))
        self._has_saved = True

    def prune(self, keep_last: int | None = None) -> None:
        """Deletes all but the last few and the best."""
        steps = self.steps()
        keep = set(steps[-(self._keep_last if keep_last is None else keep_last) :])
        if self._keep_best and (best := self.best()) is not None:
            keep.add(best)
        for step in steps:
            if step not in keep:
                self._manager.delete(step)

    def record(self, step: int) -> RunRecord:
        """Reads what a checkpoint says of its run."""
        wanted = ocp.args.Composite(run=ocp.args.JsonRestore())
        with self._explain_damage(step):
            return RunRecord(**self._manager.restore(step, args=wanted).run)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores a run's state onto the devices that ``abstract`` names, whatever wrote it.

        Raises:
          UserError: the checkpoint is of another architecture or optimizer, or was converted and
            has none.
        """
        if not (self._directory / str(step) / "optimizer").exists():
            raise UserError(
                f"{self._directory.parent} is a converted model, and no run to go on with; give it "
                "as --config.init_from, and another --workdir"
            )
        params = self.restore_params(step, abstract.params)
        optimizer_state = self._restore("optimizer", step, abstract.optimizer_state)
        place = abstract.step.sharding
        return TrainState(
            jax.device_put(jnp.asarray(step, jnp.int32), place), params, optimizer_state
        )

    def restore_params(self, step: int, abstract: Any) -> Any:
        """Restores parameters only, onto the devices that ``abstract`` names.

        Raises:
          UserError: the checkpoint is of another architecture.
        """
        return self._restore("params", step, abstract)

    def _restore(self, item: str, step: int, abstract: Any) -> Any:
        path = self._directory / str(step)
        with self._explain_damage(step):
            saved = _shapes(self._manager.item_metadata(step)[item].tree)
        _compare(path, saved, _shapes(abstract))

        def as_saved(key: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
            shape, sharding = saved[parameter_name(key)], leaf.sharding
            if shape != leaf.shape and isinstance(sharding, NamedSharding):
                # Other padding may not divide over the mesh, so the table is read whole.
                sharding = NamedSharding(sharding.mesh, PartitionSpec())
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

        there = jax.tree_util.tree_map_with_path(as_saved, abstract)
        wanted = ocp.args.Composite(**{item: ocp.args.StandardRestore(there)})
        with self._explain_damage(step):
            restored = self._manager.restore(step, args=wanted)
        return jax.tree.map(
            lambda leaf, wanted: _repad(path, leaf, wanted), restored[item], abstract
        )

    def close(self) -> None:
        """Waits for the save under way, and after a save deletes what is not to be kept."""
        with self._explain_full_disk():
            try:
                self._manager.wait_until_finished()
                if self._has_saved:
                    self.prune()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _explain_damage(self, step: int) -> Iterator[None]:
        """Names the checkpoint that lacks a file or a part of one, where Orbax has no one class."""
        try:
            yield
        except Exception as error:
            # Of numbers that it cannot read, Orbax says so by Exception itself.
            is_damage = type(error) is Exception or isinstance(error, _DAMAGE)
            if not is_damage or isinstance(error, PermissionError):
                raise
            raise UserError(
                f"{self._directory / str(step)} is damaged or incomplete ({first_line(error)}); "
                "copy it again, choose another step, or remove it to go on from an earlier one"
            ) from error

    @contextlib.contextmanager
    def _explain_full_disk(self) -> Iterator[None]:
        """Orbax reports a failed write as a ``ValueError`` that quotes the system's error."""
        try:
            yield
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "os_error_code" not in str(error):
                raise
            raise UserError(
                f"a checkpoint could not be written to {self._directory}; free some space there "
                "and run the same command again"
            ) from error


def _compare(
    path: epath.Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Names the first leaf that differs, which Orbax would not."""
    for name in sorted(found.keys() | expected.keys()):
        there, here = found.get(name), expected.get(name)
        if there == here:
            continue
        if name.endswith(VOCABULARY_TABLES) and there and here and there[1:] == here[1:]:
            continue
        raise UserError(
            f"{path} is not a checkpoint of this model: {name} is {_describe(there)} there and "
            f"{_describe(here)} here; use the config that it was made with"
        )


def _repad(path: epath.Path, table: jax.Array, wanted: Any) -> jax.Array:
    """Gives a vocabulary table as many rows of padding as the model has here."""
    if table.shape == wanted.shape:
        return table
    real = min(len(table), wanted.shape[0])
    if jnp.any(table[real:] != 0):
        raise UserError(
            f"{path} is not a checkpoint of this model: its vocabulary has more than {real} "
            "tokens; use the vocabulary that it was made with"
        )
    padding = [(0, wanted.shape[0] - real)] + [(0, 0)] * (table.ndim - 1)
    return jax.device_put(jnp.pad(table[:real], padding), wanted.sharding)


def _shapes(tree: Any) -> Mapping[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    )
    return {parameter_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _describe(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"
