"""Fine-tunes a model that chooses the best of several texts: SWAG, RACE and the like.

    python -m bert_jax.train --config configs/choose.py --workdir runs/swag \
        --config.init_from=runs/base --config.data.train=swag.jsonl \
        --config.data.context=sent1 --config.data.question=sent2 \
        --config.data.choices=ending0,ending1,ending2,ending3

A row is a context, a question or the beginning of each choice (either may be left out), its choices
and a label: the right choice's number from 0, its letter from A, or its text. Rows may have
different numbers of choices. RACE is ``data.context=article``, ``data.question=question``,
``data.choices=options``, ``data.label=answer``, with ``data.max_length=512``. Files are as in
``classify.py``.

Memory and time are those of ``batch_size`` times the number of choices. The result on a public data
set has not been measured.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe, with the argument's keys set on top: ``KEY=VALUE,...``."""
    config = load_config(str(Path(__file__).with_name("tables.py")))
    config.task = "choice"
    # The BERT paper's for SWAG (section 4.4).
    config.batch_size = 16
    config.optimizer.learning_rate = 2e-5
    config.data.update(
        {
            "context": "context",
            "question": "",  # stands before each choice
            "choices": "choices",  # a column of lists of texts, or a column for each, with commas
        }
    )
    override_from_argument(config, argument)
    return config
