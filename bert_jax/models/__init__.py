"""BERT as flax.linen modules: sizes, encoder, heads, losses and the count of FLOPs."""

from bert_jax.models.config import SIZES, BertConfig, count_parameters, sized_config
from bert_jax.models.encoder import Encoder
from bert_jax.models.flops import peak_flops, train_flops_per_token
from bert_jax.models.heads import Pooler, PretrainingModel
from bert_jax.models.losses import correct_sum, cross_entropy_sum

__all__ = [
    "SIZES",
    "BertConfig",
    "Encoder",
    "Pooler",
    "PretrainingModel",
    "correct_sum",
    "count_parameters",
    "cross_entropy_sum",
    "peak_flops",
    "sized_config",
    "train_flops_per_token",
]
