"""Trains sentence embeddings on pairs of texts.

    python -m bert_jax.train --config configs/embed.py --workdir runs/sentences \
        --config.init_from=runs/base --config.data.train=pairs.jsonl

With ``data.objective=ranking`` each text must find its partner among those of the batch, so a
larger ``batch_size`` is a harder and better lesson; ``data.negative`` names a column of texts that
are like the partner and wrong. With ``data.objective=similarity`` the cosine learns the label::

    python -m bert_jax.train --config configs/embed.py:stsb --workdir runs/stsb \
        --config.init_from=runs/base

Validation rows with labels are scored by Spearman's and Pearson's correlation of the cosine, others
by how well the first texts find the second ones among all. Files are as in ``classify.py``.

Cost and result: see the README's table of fine-tuning.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument

_STSB = {
    "tfds": "glue/stsb",
    "train": "train",
    "validation": "validation",
    "test": "test",
    "validation_share": 0.0,
    "text": "sentence1",
    "second_text": "sentence2",
    "objective": "similarity",
    "label_range": (0.0, 5.0),
    "hidden_label": -1.0,  # as TFDS has it for the test split
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``[stsb,]KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("tables.py")))
    config.task = "embedding"
    # spearman, pearson, recall_at_1, mean_reciprocal_rank, loss; by default spearman where
    # validation rows have labels, mean_reciprocal_rank where they have none.
    config.selection = ""
    config.batch_size = 64
    config.optimizer.learning_rate = 2e-5  # sentence-transformers' default
    config.pooling = "mean"  # over the real tokens; or cls
    config.normalize = True  # whether the model gives embeddings of length 1
    config.scale = 20.0  # of cosines in the ranking loss: 1 / temperature
    config.symmetric = False  # whether the second texts must find the first ones too
    config.data.update(
        {
            "text": "text",
            "second_text": "second_text",
            "negative": "",  # a column of hard negatives, for ranking
            "objective": "ranking",  # or similarity
            "hidden_label": None,  # a number that stands for a label that is not told
            "label_range": (0.0, 1.0),  # the labels that mean nothing alike, and the same
        }
    )
    preset, _, settings = argument.partition(",")
    if preset == "stsb":
        config.data.update(_STSB)
        argument = settings
    override_from_argument(config, argument)
    return config
