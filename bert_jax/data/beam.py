"""Work for the workers of an Apache Beam pipeline."""

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from bert_jax.data.beam_direct import direct_runner
from bert_jax.data.parts import Work
from bert_jax.data.stages import Progress, Report
from bert_jax.errors import UserError, first_line

_DIRECT = "DirectRunner"


class BeamRun:
    """Does work as Beam pipelines, one a stage; see ``bert_jax.data.parts.Run``.

    Args:
      runner: the name of a Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
      options: the options of Beam and of its runner, as ``key=value`` or ``key``, without dashes.
      workers: with DirectRunner, how many processes work; 0 works in this one.
      report: is called as each stage begins.

    Raises:
      UserError: Beam is not installed, or does not know the runner or an option.
    """

    def __init__(self, runner: str, options: Sequence[str], workers: int, report: Report):
        # As it is imported, Beam warns of what else could be installed.
        logging.disable(logging.WARNING)
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import (
                PipelineOptions,
                StandardOptions,
                TypeOptions,
            )
            from apache_beam.runners.runner import create_runner
        except ImportError:
            raise UserError(
                "--beam_runner needs the package apache-beam; install it with pip install "
                "-e '.[beam]'"
            ) from None
        finally:
            logging.disable(logging.NOTSET)

        self._beam = apache_beam
        self._runner_name = runner
        self._report = report
        flags = [f"--{option.strip().lstrip('-')}" for option in options if option.strip()]
        if runner == _DIRECT:
            flags = [f"--direct_num_workers={workers or 1}", *flags]
        try:
            self._options = PipelineOptions(flags)
            known = self._options.get_all_options()
            unknown = self._options.get_all_options(retain_unknown_options=True).keys() - known
        except (SystemExit, ValueError) as error:  # argparse's way to refuse, after it has printed
            raise UserError(
                f"--beam_options {','.join(options)} cannot be read ({first_line(error)})"
            ) from None
        # Runners elsewhere have options that Beam does not know of here.
        if unknown and self._runner_name == _DIRECT:
            raise UserError(f"{_DIRECT} has no option {sorted(unknown)[0]!r}; check --beam_options")
        self._make_runner: Callable[[], contextlib.AbstractContextManager[Any]]
        self._make_runner = lambda: contextlib.nullcontext(create_runner(runner))
        if runner == _DIRECT:
            self._make_runner = lambda: direct_runner(workers)
        try:
            create_runner(runner)
        except (ImportError, ValueError, AttributeError) as error:
            names = ", ".join(sorted(StandardOptions.KNOWN_RUNNER_NAMES))
            raise UserError(
                f"Beam has no runner {runner!r} here ({first_line(error)}); choose one of {names}, "
                "and for DataflowRunner pip install 'apache-beam[gcp]'"
            ) from None
        self._options.view_as(TypeOptions).pipeline_type_check = False  # our types are not Beam's
        logging.getLogger("apache_beam").setLevel(logging.ERROR)

    def __call__(self, stage: str, work: Work, elements: Sequence[Any]) -> None:
        """Runs a pipeline to its end.

        Raises:
          UserError: the runner cannot be reached, or the pipeline failed there.
        """
        beam = self._beam
        self._report(Progress(stage, 0, None, 0.0))
        # As bytes, so that Beam does not look into them for a schema.
        pickled = [pickle.dumps(element) for element in elements]
        try:
            with (
                self._make_runner() as runner,
                beam.Pipeline(runner=runner, options=self._options) as pipeline,
            ):
                (
                    pipeline
                    | "Parts" >> beam.Create(pickled)
                    | "Spread" >> beam.Reshuffle()
                    | stage.capitalize() >> beam.Map(_do, work=work)
                )
        except Exception as error:
            if self._runner_name == _DIRECT:
                raise
            raise UserError(
                f"{self._runner_name} failed at {stage!r} ({first_line(error)}); see its log"
            ) from error


def _do(pickled: bytes, work: Work) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    work(pickle.loads(pickled))
