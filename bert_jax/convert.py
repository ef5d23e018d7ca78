"""Checkpoints in and out.

    python -m bert_jax.convert from-hf bert-base-uncased/ runs/bert-base
    python -m bert_jax.convert from-tf uncased_L-12_H-768_A-12/bert_model.ckpt runs/bert-base
    python -m bert_jax.convert to-hf runs/mine exported/
    python -m bert_jax.convert to-onnx runs/mine exported/

What is read from elsewhere becomes a workdir: --config.init_from, predict --checkpoint and
bert_jax.load take it. CHECKPOINT is whatever bert_jax.load takes.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bert_jax.command_line import ArgumentParser, run, terminated_as_exception
from bert_jax.data.file_lines import is_unicode
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face import (
    ForeignModel,
    read_model,
    without_heads,
    write_config_and_tokenizer,
    write_model,
)
from bert_jax.formats.model_card import model_card
from bert_jax.formats.naming import to_tensors
from bert_jax.formats.tensorflow_checkpoint import read_tensorflow_checkpoint
from bert_jax.models.adaptation import merge_lora
from bert_jax.models.description import Head, ModelDescription, Pooling
from bert_jax.pretrained import CONVERTED, Pretrained, load, load_adapter
from bert_jax.storage import as_path, is_remote
from bert_jax.training.assets import model_assets
from bert_jax.training.atomic_file import write_directory_atomically
from bert_jax.training.checkpoints import DIRECTORY, Checkpoints, RunRecord
from bert_jax.training.environment import environment
from bert_jax.training.metrics_log import METRICS, read_metrics
from bert_jax.training.state import TrainState
from bert_jax.training.workdir import CONFIG, write_config


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and converts; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if not is_unicode(arguments.out):
        raise UserError(f"{arguments.out!a} is no name in UTF-8; choose another")
    for place in (arguments.out, arguments.source if arguments.command.startswith("from-") else ""):
        if is_remote(place):
            raise UserError(
                f"{place} is in an object store, and other programs' files are read and written on "
                "a disk; copy them, and name the copy"
            )
    source, out = Path(arguments.source).expanduser(), Path(arguments.out).expanduser()
    with terminated_as_exception():
        notes = _convert(arguments, source, out)
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {out}")
    return 0


def _convert(arguments: argparse.Namespace, source: Path, out: Path) -> Sequence[str]:
    """Does what a subcommand says; gives what did not pass over."""
    match arguments.command:
        case "from-hf":
            return _write_workdir(read_model(source), source, out)
        case "from-tf":
            return _write_workdir(read_tensorflow_checkpoint(source), source, out)
        case "to-hf":
            return _to_hugging_face(_load_plain(arguments), arguments, out)
        case _:
            return _to_onnx(_load_plain(arguments), out)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m bert_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sources = {
        "from-hf": ("DIR", "a directory of transformers or sentence-transformers"),
        "from-tf": (
            "CKPT",
            "a TF1 checkpoint of google-research/bert, such as DIR/bert_model.ckpt",
        ),
        "to-hf": ("CHECKPOINT", "what transformers' AutoModel and AutoTokenizer load"),
        "to-onnx": ("CHECKPOINT", "model.onnx, with its config and tokenizer"),
    }
    for name, (source, explanation) in sources.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.add_argument("source", metavar=source)
        command.add_argument("out", metavar="OUT", help="a directory that is made")
        if name.startswith("to-"):
            command.add_argument(
                "--step", default="latest", help="latest (default), best or a step"
            )
            command.add_argument(
                "--adapter", metavar="FILE", help="put this adapter.safetensors on the checkpoint"
            )
    to_hf = commands.choices["to-hf"]
    to_hf.add_argument(
        "--head",
        choices=["all", "mlm", "none"],
        default="all",
        help="what to write on the encoder: all that the checkpoint has (default), the masked-"
        "language-model head alone, as the fill-mask pipeline loads it, or nothing",
    )
    to_hf.add_argument(
        "--pooling",
        choices=[pooling.value for pooling in Pooling],
        help="write the encoder alone, as sentence-transformers loads it, with this pooling",
    )
    to_hf.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="with --pooling: whether embeddings have length 1 (default: as in the checkpoint)",
    )
    return parser


def _load_plain(arguments: argparse.Namespace) -> Pretrained:
    """The model to write; LoRA is folded into its kernels, because other formats have none."""
    model = load(arguments.source, arguments.step)
    if arguments.adapter is not None:
        model = load_adapter(arguments.adapter, model)
    if not model.config.is_adapted:
        return model
    params, config = merge_lora(model.params, model.config)
    description = dataclasses.replace(model.description, config=config)
    return dataclasses.replace(model, params=params, description=description)


def _write_workdir(model: ForeignModel, source: Path, out: Path) -> Sequence[str]:
    """Makes a working directory with one checkpoint, at step 0."""
    record = RunRecord(
        step=0,
        config={"task": CONVERTED, "source": source.resolve().name},
        identity={"vocabulary": model.tokenizer.hash},
        assets=model_assets(model.description, model.tokenizer),
        environment=environment(),
        notes=list(model.notes),
    )
    params = jax.tree.map(jax.numpy.asarray, model.params)
    with write_directory_atomically(out) as directory:
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(TrainState(0, params, None), record)
        write_config(directory / CONFIG, record.config)
    return model.notes


def _to_hugging_face(model: Pretrained, arguments: argparse.Namespace, out: Path) -> Sequence[str]:
    head, pooling, normalize = arguments.head, arguments.pooling, arguments.normalize
    if normalize is not None and pooling is None:
        raise UserError("--normalize is about embeddings; give --pooling too")
    if head == "mlm" and pooling is not None:
        raise UserError("embeddings are made of the encoder alone; give --head mlm or --pooling")
    description, params = model.description, model.params
    if head != "all" or pooling is not None:
        description, params = without_heads(description, params, keep_mlm=head == "mlm")
    if description.reads_mean:
        raise UserError(
            f"transformers has no BERT for {description.head} that reads the mean of all positions "
            "(pooling=mean); write ONNX with to-onnx, or the encoder alone with --head none"
        )
    if pooling is not None:
        description = dataclasses.replace(
            description,
            pooling=Pooling(pooling),
            normalize=description.normalize if normalize is None else normalize,
        )
    params = jax.tree.map(np.asarray, params)
    # Scores are of the head that the run had.
    scored_at: int | None = None
    scores: dict[str, float] = {}
    if description.head is model.description.head:
        scored_at, scores = _scores(arguments.source, model.record)
    card = model_card(
        _name(arguments),
        description,
        sum(tensor.size for tensor in to_tensors(params, description).values()),
        record=model.record,
        scored_at=scored_at,
        scores=scores,
        for_sentences=pooling is not None,
    )
    with write_directory_atomically(out) as directory:
        write_model(
            directory,
            description,
            params,
            model.tokenizer,
            card,
            for_sentences=pooling is not None,
        )
    notes = list(model.notes)
    if description.head is Head.NONE and pooling is None and not description.pooler:
        notes.append(
            "load it with AutoModel.from_pretrained(..., add_pooling_layer=False): no pooler"
        )
    notes += _left_out(description, pooled=pooling is not None)
    if description.head is Head.PRETRAINING and description.pooler:
        notes.append("for the fill-mask pipeline, --head mlm leaves out what it would warn of")
    return notes


def _left_out(description: ModelDescription, *, pooled: bool) -> list[str]:
    """What of a model other programs' files do not hold; embeddings only if they are pooled."""
    notes = []
    default = ModelDescription(description.config, Head.NONE)
    if description.head is Head.NONE and not pooled and _embeds(description) != _embeds(default):
        notes.append(
            f"how embeddings are made ({_embeds(description)}) is not written; to-hf --pooling "
            f"{description.pooling} does so"
        )
    if description.options:
        settings = (f"{name}={value}" for name, value in description.options.items())
        notes.append(f"these settings of its predictions are not written: {', '.join(settings)}")
    return notes


def _embeds(description: ModelDescription) -> str:
    return f"pooling {description.pooling}, {'' if description.normalize else 'not '}normalized"


def _to_onnx(model: Pretrained, out: Path) -> Sequence[str]:
    from bert_jax.formats.onnx_graph import write_onnx  # needs the extra `onnx`

    params = jax.tree.map(np.asarray, model.params)
    with write_directory_atomically(out) as directory:
        write_onnx(directory / "model.onnx", params, model.description)
        write_config_and_tokenizer(directory, model.description, model.tokenizer)
    return [*model.notes, *_left_out(model.description, pooled=False)]


def _workdir(source: str) -> Path:
    """The run that a workdir, or one of its checkpoints, belongs to."""
    path = as_path(source)
    return path.parent.parent if path.parent.name == DIRECTORY else path


def _name(arguments: argparse.Namespace) -> str:
    """A name for the card: of the run, or of the one whose adapter it is."""
    if arguments.adapter is not None:
        return Path(arguments.adapter).resolve().parent.name
    directory = _workdir(arguments.source)
    return directory.name if is_remote(arguments.source) else directory.resolve().name


def _scores(source: str, record: RunRecord | None) -> tuple[int | None, dict[str, float]]:
    """The last validation of the run up to the checkpoint: its step, and the metrics."""
    metrics = _workdir(source) / METRICS
    if record is None or not metrics.is_file():
        return None, {}
    prefix = "validation/"
    for line in reversed(read_metrics(metrics)):
        if line["step"] <= record.step and any(name.startswith(prefix) for name in line):
            scores = {n.removeprefix(prefix): v for n, v in line.items() if n.startswith(prefix)}
            return int(line["step"]), scores
    return None, {}


if __name__ == "__main__":
    run(main)
