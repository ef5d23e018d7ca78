"""Scores a classifier fine-tuned here, in transformers, with LoRA, and one that needs no encoder.

    python benchmarks/fine_tuning_scores.py --encoder MINILM --tfds glue/sst2 --text sentence \
        --workdir runs/scores
    python benchmarks/fine_tuning_scores.py --encoder MINILM --train news.jsonl \
        --validation test.jsonl --workdir runs/news_scores

All contestants learn from the same training rows and are scored by accuracy on the same validation
rows, which choose no checkpoint: there is one evaluation, after the last step.

    full          configs/classify.py
    transformers  the same recipe in PyTorch: Trainer on AutoModelForSequenceClassification of the
                  same directory, with the numbers of configs/classify.py (rate, schedule, warm-up,
                  AdamW with its decay, clipping, batch, length); its batches are drawn at random
                  where ours are of about one length, and the last, smaller batch counts as a step
    lora          configs/classify.py with LoRA on every projection; its scale, learning rate and
                  dropout (none) the best of ten for SST-2's first 10,000 rows, by the 5,000 rows
                  after them
    tfidf         TF-IDF of words and pairs of words with logistic regression, whose penalty is
                  chosen by cross-validation on the training rows

`scores.json` in the work directory is written after every seed, and the same command again goes on
from there. Seconds are wall-clock, from reading the rows to the score; ours include the start of
the program, compilation and a checkpoint. `--encoder` is a Hugging Face directory.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpu_threads import use_cpu

from bert_jax.command_line import run
from bert_jax.config_file import load_config
from bert_jax.data.tables import read_table, read_tfds_table
from bert_jax.errors import UserError
from bert_jax.models.config import LORA_TARGETS
from bert_jax.training.atomic_file import write_atomically
from bert_jax.training.result import RESULT, read_result

CLASSIFY = Path(__file__).parents[1] / "configs" / "classify.py"
CONTESTANTS = ("full", "transformers", "lora", "tfidf")
UNSEEDED = ("tfidf",)  # no chance in them
# As `bert_jax.train` prints it before the first step: "  trained     222,722 of them, 0.98%".
_TRAINED = re.compile(r"^ +trained +([0-9,]+) of them, ([0-9.]+)%$", re.MULTILINE)

Scores = dict[str, float]


class Rows(NamedTuple):
    """Texts and their classes, numbered from 0 in the order of their names."""

    texts: list[str]
    labels: list[int]


def read_rows(train: Path, validation: Path, text: str, label: str) -> tuple[Rows, Rows, int]:
    """Training rows, validation rows and the number of classes."""
    tables = [read_table(path, [text, label]) for path in (train, validation)]
    names = {name: number for number, name in enumerate(sorted(set(tables[0].columns[label])))}
    for name in tables[1].columns[label]:
        if name not in names:
            raise UserError(
                f"{validation} has the label {name!r}, which {train} has not; remove it"
            )
    rows = [
        Rows(table.columns[text], [names[name] for name in table.columns[label]])
        for table in tables
    ]
    return rows[0], rows[1], len(names)


def write_tfds(
    name: str, data_dir: str | None, rows: int, text: str, label: str, directory: Path
) -> tuple[Path, Path]:
    """Writes the first rows of a data set's training split, and its validation split, as JSONL."""
    paths = (directory / "train.jsonl", directory / "validation.jsonl")
    splits = (f"train[:{rows}]" if rows else "train", "validation")
    for path, split in zip(paths, splits, strict=True):
        if not path.exists():
            columns = read_tfds_table(name, split, [text, label], data_dir=data_dir).columns
            pairs = zip(columns[text], columns[label], strict=True)
            lines = (json.dumps({text: words, label: number}) for words, number in pairs)
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    return paths


def our_scores(command: Sequence[str], workdir: Path) -> Scores:
    """A run of `bert_jax.train` in a process of its own."""
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "log.txt"
    with log.open("a") as output:
        subprocess.run(command, check=True, stdout=output, stderr=output)
    scores = {"accuracy": read_result(workdir / RESULT).values["accuracy"]}
    if found := _TRAINED.search(log.read_text()):
        scores["trained_parameters"] = float(found[1].replace(",", ""))
        scores["trained_share"] = float(found[2]) / 100
    return scores


def our_command(
    arguments: argparse.Namespace,
    train: Path,
    validation: Path,
    workdir: Path,
    seed: str,
    settings: dict[str, Any],
) -> list[str]:
    """The command line of a run with settings of its own."""
    shared = {
        "seed": seed,
        "init_from": arguments.encoder,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "data.train": train,
        "data.validation": validation,
        "data.text": arguments.text,
        "data.label": arguments.label,
        "data.max_length": arguments.max_length,
    }
    start = [sys.executable, "-m", "bert_jax.train", "--config", str(CLASSIFY)]
    overrides = [f"--config.{key}={value}" for key, value in (shared | settings).items()]
    return [*start, "--workdir", str(workdir), *overrides]


def transformers_scores(
    arguments: argparse.Namespace, train: Rows, validation: Rows, classes: int, seed: int
) -> Scores:
    """transformers' Trainer, with what it does not share with ours left at its defaults."""
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.encoder)

    def encode(rows: Rows) -> list[dict[str, Any]]:
        encoded = tokenizer(rows.texts, truncation=True, max_length=arguments.max_length)
        return [
            {"input_ids": ids, "labels": label}
            for ids, label in zip(encoded["input_ids"], rows.labels, strict=True)
        ]

    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        arguments.encoder, num_labels=classes
    )
    optimizer = load_config(str(CLASSIFY)).optimizer
    with tempfile.TemporaryDirectory() as directory:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=directory,
                seed=seed,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=arguments.batch_size,
                per_device_eval_batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                lr_scheduler_type=optimizer.schedule,
                warmup_steps=optimizer.warmup_share,  # below 1 it is a share of the steps
                # AdamW; as in ours, biases and LayerNorm are not decayed.
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.beta1,
                adam_beta2=optimizer.beta2,
                adam_epsilon=optimizer.epsilon,
                max_grad_norm=optimizer.clip_norm,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=encode(train),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        predicted = trainer.predict(encode(validation)).predictions.argmax(-1).tolist()
    return {"accuracy": _accuracy(predicted, validation.labels)}


def tfidf_scores(train: Rows, validation: Rows) -> Scores:
    """TF-IDF with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    classifier = GridSearchCV(
        make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            LogisticRegression(max_iter=1000),
        ),
        {"logisticregression__C": [1.0, 10.0, 100.0]},
        cv=3,
    )
    classifier.fit(train.texts, train.labels)
    accuracy = _accuracy(classifier.predict(validation.texts).tolist(), validation.labels)
    return {"accuracy": accuracy, "C": classifier.best_params_["logisticregression__C"]}


def _accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    right = sum(one == other for one, other in zip(predicted, labels, strict=True))
    return right / len(labels)


class Record:
    """`scores.json`: what each contestant came to, by seed, and with which settings."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path = path
        self._content: dict[str, Any] = {"settings": settings, "scores": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                sys.exit(f"{path} was made with other settings: {found['settings']}")
            self._content = found

    def of(self, contestant: str) -> dict[str, Scores]:
        """A contestant's scores by seed."""
        return self._content["scores"].setdefault(contestant, {})

    def add(self, contestant: str, seed: str, scores: Scores) -> None:
        """Keeps what a contestant came to."""
        self.of(contestant)[seed] = scores
        write_atomically(self._path, json.dumps(self._content, indent=1).encode() + b"\n")


def table(record: Record, contestants: Sequence[str], seeds: Sequence[str]) -> list[str]:
    """A line for each contestant: mean ± standard deviation (n-1) over its seeds."""
    lines = [f"{'':14}{'accuracy, %':>15}{'seconds':>9}{'trained':>9}  by seed"]
    for contestant in contestants:
        scores = [record.of(contestant)[seed] for seed in seeds if seed in record.of(contestant)]
        accuracies = [100 * one["accuracy"] for one in scores]
        shown = f"{statistics.fmean(accuracies):.2f}"
        if len(accuracies) > 1:
            shown += f" ± {statistics.stdev(accuracies):.2f}"
        seconds = statistics.fmean(one["seconds"] for one in scores)
        share = f"{scores[0]['trained_share']:.2%}" if "trained_share" in scores[0] else ""
        each = " ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        lines.append(f"{contestant:14}{shown:>15}{seconds:9.0f}{share:>9}  {each}")
    return lines


def main() -> None:
    """Runs the contestants, prints the table, keeps the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, help="a Hugging Face directory")
    parser.add_argument("--workdir", type=Path, required=True, help="where all is kept")
    parser.add_argument("--train", type=Path, help="a table: .jsonl, .csv or .tsv")
    parser.add_argument("--validation", type=Path, help="another, with the same columns")
    parser.add_argument("--tfds", help="a TFDS data set instead of files, such as glue/sst2")
    parser.add_argument("--data_dir", help="where TFDS keeps its data, if not in its own place")
    parser.add_argument("--rows", type=int, default=10_000, help="of it, the first; 0: all")
    parser.add_argument("--text", default="text", help="the column of texts")
    parser.add_argument("--label", default="label", help="the column of classes")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="with commas")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lora_rank", type=int, default=4)
    parser.add_argument("--lora_alpha", type=float, default=16.0)
    parser.add_argument("--lora_learning_rate", type=float, default=2e-3)
    parser.add_argument("--lora_dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    contestants, seeds = arguments.contestants.split(","), arguments.seeds.split(",")
    if unknown := set(contestants) - set(CONTESTANTS):
        parser.error(f"no contestant {', '.join(unknown)}; choose of {', '.join(CONTESTANTS)}")
    if (arguments.train is None or arguments.validation is None) == (arguments.tfds is None):
        parser.error("give --train and --validation, or --tfds")
    if arguments.encoder is None and set(contestants) - {"tfidf"}:
        parser.error("give --encoder, the directory that is fine-tuned")

    use_cpu(arguments.threads)
    workdir = arguments.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    text, label = arguments.text, arguments.label
    train_file, validation_file = (
        write_tfds(arguments.tfds, arguments.data_dir, arguments.rows, text, label, workdir)
        if arguments.tfds
        else (arguments.train, arguments.validation)
    )
    train, validation, classes = read_rows(train_file, validation_file, text, label)
    # Which contestants and seeds, and where things are, may change from one call to the next.
    places = ("contestants", "seeds", "workdir", "data_dir")
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in places}
    record = Record(workdir / "scores.json", settings)

    our_settings = {
        "full": {"optimizer.learning_rate": arguments.learning_rate},
        "lora": {
            "model.lora_rank": arguments.lora_rank,
            "model.lora_alpha": arguments.lora_alpha,
            "model.lora_targets": LORA_TARGETS,
            "model.hidden_dropout": arguments.lora_dropout,
            "model.attention_dropout": arguments.lora_dropout,
            "optimizer.learning_rate": arguments.lora_learning_rate,
        },
    }

    def ours(contestant: str, seed: str) -> Scores:
        directory = workdir / contestant / f"seed={seed}"
        # A run that was interrupted would go on, and its time would be of the rest alone.
        shutil.rmtree(directory, ignore_errors=True)
        command = our_command(
            arguments, train_file, validation_file, directory, seed, our_settings[contestant]
        )
        print(shlex.join(["python", *command[1:]]), flush=True)
        return our_scores(command, directory)

    contests: dict[str, Callable[[str], Scores]] = {
        "full": lambda seed: ours("full", seed),
        "lora": lambda seed: ours("lora", seed),
        "transformers": lambda seed: transformers_scores(
            arguments, train, validation, classes, int(seed)
        ),
        "tfidf": lambda _: tfidf_scores(train, validation),
    }
    print(f"{len(train.texts):,} training and {len(validation.texts):,} validation rows")
    print(" ".join(f"{key}={value}" for key, value in settings.items()), flush=True)
    for seed in seeds:
        for contestant in contestants:
            if seed in record.of(contestant) or (contestant in UNSEEDED and seed != seeds[0]):
                continue
            started = time.perf_counter()
            scores = contests[contestant](seed)
            scores["seconds"] = time.perf_counter() - started
            record.add(contestant, seed, scores)
            print(f"{contestant}, seed {seed}: {scores}", flush=True)
    print("\n".join(table(record, contestants, seeds)))


if __name__ == "__main__":
    # The runs' package is this checkout's, wherever they are started.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(CLASSIFY.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    run(main)
