"""Whether a run may go on from a checkpoint, and what has changed since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.training.checkpoints import RunRecord
from bert_jax.training.environment import describe_changes


def check_resumable(
    previous: RunRecord, current: RunRecord, total_steps: int, workdir: Path
) -> None:
    """Compares a checkpoint's record with that of the run that would go on from it.

    Raises:
      UserError: the data or the vocabulary are others, or the checkpoint is past the run's end.
    """
    # Records of older versions lack some keys.
    for key in previous.identity:
        if previous.identity[key] != current.identity.get(key):
            changed = config_changes(previous.config, current.config)
            perhaps = f", perhaps by the settings {', '.join(changed)}" if changed else ""
            raise UserError(
                f"{workdir} was trained with other {key}: {previous.identity[key]} there, "
                f"{current.identity.get(key)} now{perhaps}; give the same, or another --workdir"
            )
    if previous.step > total_steps:
        raise UserError(
            f"{workdir} is at step {previous.step:,}, past total_steps={total_steps:,}; "
            "raise total_steps, or give another --workdir"
        )


def changes(previous: RunRecord, current: RunRecord) -> list[str]:
    """One sentence, if anything that decides a run's numbers changed at a resume."""
    found = describe_changes(previous.environment, current.environment)
    found += config_changes(previous.config, current.config)
    before, after = (record.config.get("batch_size") for record in (previous, current))
    if before != after:
        # A batch's rows follow from its number and size alone.
        found.append(f"the data go on as after {previous.step:,} batches of {after}")
    return [f"changed at step {previous.step:,}: {', '.join(found)}"] if found else []


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A phrase for every key of two configs whose values differ."""
    return describe_changes(_flatten(before), _flatten(after))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
