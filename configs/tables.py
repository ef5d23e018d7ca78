"""What the recipes on tables of texts share. It is no recipe by itself: see ``classify.py``."""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The settings of every task on tables; the argument sets keys: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("fine_tune.py")))
    # What is read of a text: cls, its first position, through BERT's pooler; or mean, all of them,
    # as encoders of sentences were trained.
    config.pooling = "cls"
    config.data.update(
        {
            "tfds": "",  # a TFDS data set; train, validation and test are then splits of it
            "data_dir": "",  # where TFDS keeps its data, if not in its own place
            # Files: .jsonl, .csv or .tsv, compressed (.gz, .xz, .zst) or not; several with commas.
            "train": "",
            "validation": "",
            "test": "",
            "validation_share": 0.1,  # of the training rows, where no validation file is given
            "label": "label",
            "index": "",  # what predictions call a row; by default its position, from 0
        }
    )
    override_from_argument(config, argument)
    return config
