"""Fine-tunes a model that gives a number for a text or a pair of texts, such as a similarity.

    python -m bert_jax.train --config configs/regress.py --workdir runs/similarity \
        --config.init_from=runs/base --config.data.train=pairs.tsv \
        --config.data.text=first --config.data.second_text=second --config.data.label=score

Files are as in ``classify.py``. For a cost and a result see STS-B in the README's table of
fine-tuning, which is ``glue.py:stsb``.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("tables.py")))
    config.task = "regression"
    config.selection = "spearman"  # or pearson, mse
    config.data.update(
        {
            "text": "text",
            "second_text": "",  # for pairs of texts
            # More than 1: so many short texts may share a row of max_length tokens (packing), and
            # batch_size counts rows.
            "sequences_per_row": 1,
            "hidden_label": None,  # a number that stands for a label that is not told
        }
    )
    override_from_argument(config, argument)
    return config
