"""Pretrains a small BERT in minutes, on documentation that every Python machine already has.

python -m bert_jax.train --config configs/demo.py --workdir runs/demo
"""

from pathlib import Path

import ml_collections

from bert_jax.command_line import load_config


def get_config() -> ml_collections.ConfigDict:
    """The recipe of ``pretrain.py`` at a size, length and learning rate for two CPU cores."""
    config = load_config(f"{Path(__file__).with_name('pretrain.py')}:tiny")
    config.total_steps = 4000
    config.batch_size = 32
    config.log_every_steps = 50
    config.evaluate_every_steps = 500
    config.checkpoint_every_steps = 500
    config.evaluation.examples = 1024
    config.docs.vocabulary_size = 4096
    config.data.max_length = 64
    # A small model that sees its text a few times has no need of dropout.
    config.model.hidden_dropout = 0.0
    config.model.attention_dropout = 0.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_share = 0.05
    return config
