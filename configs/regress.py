"""Fine-tunes a model that gives a number for a text or a pair of texts, such as a similarity.

    python -m bert_jax.train --config configs/regress.py --workdir runs/similarity \
        --config.init_from=runs/base --config.data.train=pairs.tsv \
        --config.data.text=first --config.data.second_text=second --config.data.label=score

Files are as in ``classify.py``. Cost and result: see the README's table of fine-tuning.
"""

from pathlib import Path

import ml_collections

from bert_jax.command_line import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("fine_tune.py")))
    config.task = "regression"
    config.selection = "spearman"  # or pearson, mse
    config.data.update(
        {
            "tfds": "",  # a TFDS data set; train, validation and test are then splits of it
            "data_dir": "",  # where TFDS keeps its data, if not in its own place
            # Files: .jsonl, .csv or .tsv, compressed (.gz, .xz, .zst) or not; several with commas.
            "train": "",
            "validation": "",
            "test": "",
            "validation_share": 0.1,  # of the training rows, where no validation file is given
            "text": "text",
            "second_text": "",  # for pairs of texts
            "label": "label",
            "index": "",  # what predictions call a row; by default its position, from 0
        }
    )
    override_from_argument(config, argument)
    return config
