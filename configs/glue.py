"""Fine-tunes on a task of GLUE (Wang et al., arXiv:1804.07461), from TFDS.

    python -m bert_jax.train --config configs/glue.py:sst2 --workdir runs/sst2 \
        --config.init_from=runs/base

The argument is ``TASK[,KEY=VALUE...]``, a task one of cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte,
wnli. TFDS downloads the data, or finds them under ``data.data_dir``. Scores are on the validation
split, by each task's official metrics; for the test server::

    python -m bert_jax.evaluate --workdir runs/sst2 --split test --predictions SST-2.tsv

MNLI has two test splits, so two submissions: ``--data test_matched --predictions MNLI-m.tsv`` and
``--data test_mismatched --predictions MNLI-mm.tsv``.

Cost and result: see the README's table of fine-tuning.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument
from bert_jax.errors import UserError

# Columns, and the official metric (of several, that which chooses the best checkpoint).
_TASKS = {
    "cola": ("sentence", "", "matthews_correlation"),
    "sst2": ("sentence", "", "accuracy"),
    "mrpc": ("sentence1", "sentence2", "f1"),
    "stsb": ("sentence1", "sentence2", "spearman"),
    "qqp": ("question1", "question2", "f1"),
    "mnli": ("premise", "hypothesis", "accuracy"),
    "qnli": ("question", "sentence", "accuracy"),
    "rte": ("sentence1", "sentence2", "accuracy"),
    "wnli": ("sentence1", "sentence2", "accuracy"),
}
# Their submissions name the class; the others number it.
_NAMED = ("mnli", "qnli", "rte")


def get_config(argument: str) -> ml_collections.ConfigDict:
    """The recipe of a task, with keys set on top."""
    task, _, settings = argument.partition(",")
    if task not in _TASKS:
        raise UserError(f"GLUE has no task {task!r}; choose one of {', '.join(_TASKS)}")
    text, second_text, metric = _TASKS[task]
    kind = "regress" if task == "stsb" else "classify"
    config = load_config(str(Path(__file__).with_name(f"{kind}.py")))
    config.selection = metric
    config.data.tfds = f"glue/{task}"
    config.data.train = "train"
    config.data.validation = "validation"
    config.data.test = "test"
    config.data.validation_share = 0.0
    # TFDS has the rows in an order of its own; the test server goes by these numbers.
    config.data.index = "idx"
    config.data.text = text
    config.data.second_text = second_text
    if task == "mnli":
        config.data.validation = "validation_matched,validation_mismatched"
        config.data.test = "test_matched,test_mismatched"
    if task == "stsb":
        config.data.hidden_label = -1.0  # as TFDS has it for the test split
    else:
        config.data.submission = "name" if task in _NAMED else "number"
    override_from_argument(config, settings)
    return config
