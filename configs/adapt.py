"""Goes on with masked-language modelling on your own text, from a model that is there.

    python -m bert_jax.prepare --input 'corpus/*.txt' --output data/mine --vocabulary DIRECTORY
    python -m bert_jax.train --config configs/adapt.py:corpus=data/mine --workdir runs/adapted \
        --config.init_from=DIRECTORY

``DIRECTORY`` is a run or a Hugging Face model; its size comes with it. ``prepare
--extend_vocabulary 1000`` adds words of the text to its vocabulary; each begins as the mean of the
pieces that it had. A model without a masked-language-model head gets a new one. Then fine-tune with
``--config.init_from=runs/adapted``.

``data.objective=nsp`` goes on with the next-sentence task too and keeps the pooler that comes with
it; without, a classifier's pooler starts from random weights.

Domain- and task-adaptive pretraining as in Gururangan et al., arXiv:2004.10964, whose rate and
batch for small corpora these are (they saw a task's text 100 times; see ``epochs``).
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe of ``pretrain.py`` for a model that is there, with keys set on top."""
    recipes = Path(__file__).parent
    config = load_config(str(recipes / "pretrain.py"))
    # As in the model that the run starts from.
    config.model = load_config(str(recipes / "fine_tune.py")).model
    config.model.vocabulary_chunks = None
    config.epochs = 3.0
    config.total_steps = 0  # 0: as many as the epochs take
    config.log_every_steps = 50
    config.evaluate_every_steps = 500
    config.checkpoint_every_steps = 500
    config.data.objective = "none"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_share = 0.06
    config.optimizer.bias_correction = True
    override_from_argument(config, argument)
    return config
