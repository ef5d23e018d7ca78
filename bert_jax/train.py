"""Trains any task.

    python -m bert_jax.train --config configs/pretrain.py:tiny --workdir runs/tiny

The same command again goes on where the run stopped. Exit codes: 0 finished; 75 stopped by SIGTERM
and saved, run it again to go on; 130 stopped by Ctrl-C and saved; 2 the input cannot be used.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import ml_collections

from bert_jax.command_line import parse_config_flags, run
from bert_jax.config_file import as_json
from bert_jax.errors import UserError
from bert_jax.models.flops import peak_flops
from bert_jax.models.reinitialisation import reinitialise_top_layers
from bert_jax.pretrained import Pretrained, load
from bert_jax.tasks.base import Phase, Start, Task, sequence_length
from bert_jax.tasks.batches import training_batches, validation_batches
from bert_jax.tasks.program import Program, check_settings, make_program
from bert_jax.tasks.registry import load_task
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.compiled_programs import keep_compiled_programs
from bert_jax.training.continuation import changes, check_resumable
from bert_jax.training.early_stopping import EarlyStopping
from bert_jax.training.environment import environment, versions
from bert_jax.training.evaluation import Evaluation, evaluate
from bert_jax.training.host_memory import keep_freed_memory
from bert_jax.training.metrics import Sums
from bert_jax.training.metrics_log import METRICS, MetricsLog, read_metrics
from bert_jax.training.monitor import TOKENS, Monitor
from bert_jax.training.preemption import Preemption
from bert_jax.training.processes import (
    check_agreement,
    claim_shared_workdir,
    is_first,
    join,
    leave_at_once,
    make_preemption,
    tell_process_of_fault,
    wait_for_all,
)
from bert_jax.training.progress import Progress
from bert_jax.training.report import write_report
from bert_jax.training.result import RESULT, find_result, write_result
from bert_jax.training.run_description import describe_run, describe_step
from bert_jax.training.sharding import ACTIVATION_RULES, make_mesh, to_global
from bert_jax.training.speed import SpeedMeter
from bert_jax.training.state import initial_state
from bert_jax.training.step import make_evaluation_step
from bert_jax.training.transplant import transplant
from bert_jax.training.workdir import CONFIG, REPORT, Workdir, write_config


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and trains; returns the exit code."""
    flags = parse_config_flags(argv)
    keep_freed_memory()
    join(flags.processes)
    with (
        tell_process_of_fault(),
        claim_shared_workdir(flags.workdir) as workdir,
        make_preemption() as preemption,
    ):
        keep_compiled_programs(workdir.place.parent)
        return train(flags.config, workdir, preemption)


def train(config: ml_collections.ConfigDict, workdir: Workdir, preemption: Preemption) -> int:
    """Trains until ``config.total_steps`` or until told to stop; returns the exit code.

    Raises:
      UserError: something in the config, the data or the working directory cannot be used.
    """
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        return _train(config, workdir, preemption, mesh)


def _train(
    config: ml_collections.ConfigDict,
    workdir: Workdir,
    preemption: Preemption,
    mesh: jax.sharding.Mesh,
) -> int:
    surroundings = environment()
    check_agreement(versions(surroundings), "versions", "the same packages")
    check_agreement(as_json(config), "settings", "the same command")
    with contextlib.ExitStack() as stack:
        # --- What to train, and from where. ---
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir.place,
                keep_last=config.checkpoints.keep_last,
                keep_best=config.checkpoints.keep_best,
            )
        )
        resumed_at = checkpoints.latest()
        previous = None if resumed_at is None else checkpoints.record(resumed_at)
        check_settings(config, mesh)
        origin = None
        if config.init_from and previous is None:
            origin = load(config.init_from, mesh=mesh)
        task = load_task(config, _start(previous, origin))
        config = task.config
        program = make_program(task, mesh)
        masking, abstract = program.masking, program.state
        record = RunRecord(
            step=0,
            config=as_json(config),
            identity=task.identity(),
            assets=task.assets(),
            environment=surroundings,
            notes=[],
        )

        # --- Restore, or initialise. ---
        notes: list[str] = []
        if resumed_at is None or previous is None:
            key = jax.random.fold_in(jax.random.key(config.seed), 0)
            state = initial_state(task.initialise, program.optimizer, abstract, key, masking)
            if origin is not None:
                adopted = task.adopt(origin.params)
                params, told = transplant(state.params, adopted, config.init_from)
                notes = [*origin.notes, *told]
                forgotten = config.get("reinitialise_layers", 0)
                params = reinitialise_top_layers(params, state.params, forgotten)
                state = state.replace(params=params)
        else:
            check_resumable(previous, record, config.total_steps, workdir.place)
            changed = changes(previous, record)
            record = record._replace(notes=[*previous.notes, *changed])
            state = checkpoints.restore(resumed_at, abstract)
            notes = ["; ".join([f"going on from step {resumed_at:,}", *changed])]
        step = saved = resumed_at or 0

        check_agreement([resumed_at, record.identity], "data", "the same files")

        # --- Print the plan. ---
        if is_first():
            write_config(workdir.files / CONFIG, record.config)
        log = stack.enter_context(
            MetricsLog(workdir.files, resume_step=resumed_at, enabled=is_first())
        )
        wait_for_all("what the log keeps is on the disk")
        progress = stack.enter_context(Progress(config.total_steps, step, enabled=is_first()))
        phases = [f"{phase.batch_size:,} × {phase.description}" for phase in task.phases]
        progress.note(
            describe_run(config.task, config.total_steps, phases, mesh, abstract, masking)
        )
        for note in notes:
            progress.note(note)

        settings = program.make_settings()

        # --- Train. Between two steps the state is whole: that is when anything else happens. ---
        evaluation_step = jax.jit(make_evaluation_step(task))
        meter = SpeedMeter(_peak_flops(mesh))
        monitor = Monitor(
            log, progress, meter, _describer(task), config.log_every_steps, checkpoints.committed
        )
        batches = stack.enter_context(contextlib.closing(training_batches(task, step, mesh)))
        patience = EarlyStopping(
            config.get("early_stopping_evaluations", 0),
            task.higher_is_better,
            _scores(log.kept, task),
        )
        compiled: dict[tuple[tuple[int, ...], ...], jax.stages.Compiled] = {}

        def save() -> None:
            nonlocal saved
            if step == saved:
                return
            monitor.catch_up()
            log.flush()
            if is_first():
                workdir.publish()
            checkpoints.save(state, record._replace(step=step))
            saved = step

        while True:
            is_last = step == config.total_steps or patience.exhausted
            phase = task.phase_at(step)
            is_best = given_up = False
            if _evaluation_is_due(step, is_last, phase, task, log):
                monitor.catch_up()
                result = evaluate(
                    evaluation_step,
                    state.params,
                    validation_batches(task, phase, mesh),
                    task.validation_size(phase),
                    mesh,
                    preemption.stops_here,
                )
                given_up = result is None
                if result is not None:
                    try:
                        values = _validation_values(result, task)
                    except Exception:
                        # In all processes alike. What was learnt is kept, though it has no score.
                        save()
                        raise
                    _log_validation(step, values, log, progress)
                    score = values[task.selection]
                    number = task.phases.index(phase)
                    patience.note(number, score)
                    lower = -score if task.higher_is_better else score
                    is_best = checkpoints.note_score(step, number, lower)
                    is_last = is_last or patience.exhausted
                meter.restart()
            stopping = preemption.stops_here()
            save_due = is_last or stopping or _is_due(step, config.checkpoint_every_steps)
            if save_due or (is_best and config.checkpoints.keep_best):
                save()
            if is_last or stopping:
                break
            batch = to_global(meter.next(batches), mesh)
            shapes = tuple(batch[name].shape for name in sorted(batch))
            length = sequence_length(batch)
            flops = None if length is None else task.flops_per_token(length)
            if shapes not in compiled:
                monitor.catch_up()
                compiled[shapes] = _compile(program, mesh, batch, length, flops, progress)
                meter.restart()
            state, sums = compiled[shapes](state, batch, settings)
            step += 1
            monitor.follow(step, sums, flops)

        # --- Tell how it ended. ---
        if given_up or (stopping and not is_last):
            where = f"and saved at step {step:,}" if step else "before the first step"
            progress.note(f"stopped {where}; the same command goes on")
            return preemption.exit_code
        # What is left is of the step that the run is judged by.
        params, first_step = state.params, task.phase_at(step).first_step
        best = checkpoints.best(first_step) if config.checkpoints.keep_best else None
        if best is not None and best != step:
            progress.note(f"step {best:,} scored best; elsewhere --step best reads it")
            checkpoints.committed()
            params = checkpoints.restore_params(best, abstract.params)
        samples = task.samples(params)
        left = task.finish(workdir.files, params)
        if is_first():
            log.close()
            metrics = read_metrics(workdir.files / METRICS)
            judged_by = find_result(
                metrics,
                task.selection,
                task.higher_is_better,
                first_step=first_step,
                best=config.checkpoints.keep_best,
            )
            write_result(workdir.files / RESULT, judged_by._replace(identity=record.identity))
            write_report(
                workdir.files / REPORT,
                title=f"{config.task}: {workdir.place.name}",
                metrics=metrics,
                config=json.dumps(record.config, indent=2),
                # With the corpus's fingerprint, by which a result can be cited.
                environment=record.environment | {"data": json.dumps(record.identity)},
                summary=task.headline(judged_by.values),
                samples=samples,
                notes=record.notes,
            )
            for line in left:
                progress.note(line)
            progress.note(f"finished; the report is {workdir.place / REPORT}")
    return 0


def _is_due(step: int, every: int) -> bool:
    return step > 0 and every > 0 and step % every == 0


def _evaluation_is_due(step: int, is_last: bool, phase: Phase, task: Task, log: MetricsLog) -> bool:
    if not (is_last or _is_due(step, task.config.evaluate_every_steps)):
        return False
    # A run that goes on may stand at a step that was evaluated before it was saved.
    validated = (log.last_record("validation/") or {}).get("step") == step
    return not validated and task.validation_size(phase) > 0


def _start(previous: RunRecord | None, origin: Pretrained | None) -> Start:
    """What the task begins with: its own last checkpoint before anything else."""
    if previous is not None:
        return Start(previous.assets, previous.identity)
    return Start() if origin is None else Start(origin.assets, params=origin.params)


def _scores(records: Sequence[Mapping[str, float]], task: Task) -> list[tuple[int, float]]:
    """The phase and the score of each evaluation that was logged."""
    name = f"validation/{task.selection}"
    return [
        (task.phases.index(task.phase_at(int(record["step"]))), record[name])
        for record in records
        if name in record
    ]


def _peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.devices.size


def _describer(task: Task) -> Callable[[int, Sums], dict[str, float]]:
    def describe(step: int, sums: Sums) -> dict[str, float]:
        values = {f"train/{name}": value for name, value in task.metrics(sums).items()}
        return values | task.data_metrics(step)

    return describe


def _validation_values(result: Evaluation, task: Task) -> dict[str, float]:
    """The metrics of an evaluation, among them the one that decides which checkpoint is best."""
    result.sums.pop(TOKENS, None)
    values = task.metrics(result.sums) | task.scores(result.outputs)
    if task.selection not in values:
        raise UserError(
            f"--config.selection={task.selection!r} is no metric of this task; choose one of "
            f"{', '.join(values)}"
        )
    return values


def _log_validation(
    step: int, values: Mapping[str, float], log: MetricsLog, progress: Progress
) -> None:
    log.write(step, {f"validation/{name}": value for name, value in values.items()})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    progress.note(f"step {step:,}: validation {shown}")


def _compile(
    program: Program,
    mesh: jax.sharding.Mesh,
    batch: dict[str, jax.Array],
    length: int | None,
    flops_per_token: float | None,
    progress: Progress,
) -> jax.stages.Compiled:
    """Compiles the step for a batch's shapes and says what it costs."""
    started = time.perf_counter()
    compiled = program.compile(batch, mesh)
    seconds = time.perf_counter() - started
    examples = len(next(iter(batch.values())))
    positions = batch["token_ids"].size if length else 0
    flops = (flops_per_token or 0.0) * positions / jax.device_count()
    name = "examples" if length is None else f"length {length}"
    progress.note(f"{examples:,} × {name}: {describe_step(compiled, seconds, flops)}")
    return compiled


if __name__ == "__main__":
    run(main, fail=leave_at_once)
