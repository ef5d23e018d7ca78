"""Fine-tunes a tagger of entities, such as names, on your own files or a TFDS data set.

    python -m bert_jax.train --config configs/tag.py --workdir runs/entities \
        --config.init_from=runs/base --config.data.train=train.conll \
        --config.data.validation=dev.conll

Files are JSON lines with a list of words and one of tags, or CoNLL's columns: a word a line, blank
lines between sentences. CoNLL-2003, which TFDS has::

    --config.data.tfds=conll2003 --config.data.train=train --config.data.validation=dev

Tags are O, or B-, I-, E- or S- before an entity's type. Precision, recall and F1 are those of whole
entities, as ``conlleval`` and ``seqeval`` count them. Entities are told by capitals: a cased
encoder finds more of them.

Cost and result: see the README's table of fine-tuning.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("fine_tune.py")))
    config.task = "tagging"
    config.selection = "f1"  # or precision, recall, accuracy, loss
    config.optimizer.learning_rate = 5e-5
    config.data.update(
        {
            "tfds": "",  # a TFDS data set; train, validation and test are then splits of it
            "data_dir": "",  # where TFDS keeps its data, if not in its own place
            # Files, compressed (.gz, .xz, .zst) or not; several with commas. What is not named
            # .jsonl or .json is read as CoNLL's columns.
            "train": "",
            "validation": "",
            "test": "",
            "validation_share": 0.1,  # of the training sentences, where no validation file is given
            # The keys of words and tags in JSON and TFDS, or the numbers of their columns, from 0.
            # None: "tokens" and "ner_tags" (in TFDS "ner"); the first column and the last.
            "tokens": None,
            "tags": None,
            "tag_names": (),  # in order, where JSON has numbers for tags
            # More than 1: so many short sentences may share a row of max_length tokens (packing),
            # and batch_size counts rows.
            "sequences_per_row": 1,
        }
    )
    override_from_argument(config, argument)
    return config
