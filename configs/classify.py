"""Fine-tunes a classifier of texts or pairs of texts on your own files, or on a TFDS data set.

    python -m bert_jax.train --config configs/classify.py --workdir runs/news \
        --config.init_from=runs/base --config.data.train=news.jsonl

Files are JSON lines, CSV or TSV with named columns: ``data.text`` (and ``data.second_text`` for
pairs) and ``data.label``. With ``--config.task=multi_label`` a row has any number of labels: a list
in JSON, or names with ``data.label_separator`` between them.

Cost and result: see the README's table of fine-tuning.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("tables.py")))
    config.task = "classification"  # or multi_label
    config.selection = "accuracy"  # or macro_f1, matthews_correlation, loss...
    # What each class counts in the loss: "balanced", or a tuple of numbers in the labels' order.
    config.class_weights = None
    config.data.update(
        {
            "text": "text",
            "second_text": "",  # for pairs of texts
            # More than 1: so many short texts may share a row of max_length tokens (packing), and
            # batch_size counts rows.
            "sequences_per_row": 1,
            "labels": (),  # their names in order; by default those that occur, sorted
            "label_separator": "|",  # between the labels of a multi_label row in CSV and TSV
            "submission": "name",  # how predictions give the class: name or number
        }
    )
    override_from_argument(config, argument)
    return config
