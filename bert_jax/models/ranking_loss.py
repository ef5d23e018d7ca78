"""The contrastive loss of pairs, with the other pairs of the batch as what is not to be chosen.

Shapes: B batch, D width, C candidates.
"""

import jax
import jax.numpy as jnp

from bert_jax.models.losses import cross_entropy_sum

Array = jax.Array

_NO_CANDIDATE = -1e9


def ranking_loss_sum(
    embeddings_BKD: Array,
    text_numbers_BK: Array,
    weights_B: Array,
    *,
    scale: float,
    symmetric: bool,
) -> tuple[Array, Array]:
    """Weighted sum of -log softmax(scale * cosines)[positive], each anchor against the batch.

    Multiple negatives ranking (Henderson et al., arXiv:1705.00652, section 4) with cosines and a
    scale, as in sentence-transformers' ``MultipleNegativesRankingLoss``: InfoNCE (van den Oord et
    al., arXiv:1807.03748) of temperature ``1 / scale``. A candidate that is the same text as the
    anchor or as its positive would be a negative by mistake, and takes no part; neither does one of
    weight zero.

    Args:
      embeddings_BKD: float32 of length 1: anchors, positives and, if K is 3, hard negatives.
      text_numbers_BK: int; equal texts have equal numbers.
      weights_B: float32.
      scale: the inverse of the temperature.
      symmetric: whether positives must find their anchors too; the loss is then the mean of both.

    Returns:
      Two float32 scalars: the sum of weighted losses and the sum of the weights.
    """
    anchors_BD, anchor_numbers_B = embeddings_BKD[:, 0], text_numbers_BK[:, 0]
    positives_BD, positive_numbers_B = embeddings_BKD[:, 1], text_numbers_BK[:, 1]

    def one_way(
        queries_BD: Array, query_numbers_B: Array, answer_numbers_B: Array, candidates: slice
    ) -> tuple[Array, Array]:
        # All of the first kind, then all of the second: the right answer of row i is candidate i.
        candidates_CD = jnp.concatenate(jnp.unstack(embeddings_BKD[:, candidates], axis=1))
        numbers_C = text_numbers_BK[:, candidates].T.ravel()
        weights_C = jnp.tile(weights_B, len(numbers_C) // len(weights_B))
        is_answer_BC = jnp.arange(len(numbers_C)) == jnp.arange(len(weights_B))[:, None]
        by_mistake_BC = (numbers_C == query_numbers_B[:, None]) | (
            numbers_C == answer_numbers_B[:, None]
        )
        takes_part_BC = is_answer_BC | (~by_mistake_BC & (weights_C > 0))
        cosines_BC = jnp.einsum("BD,CD->BC", queries_BD, candidates_CD, precision="highest")
        logits_BC = jnp.where(takes_part_BC, scale * cosines_BC, _NO_CANDIDATE)
        return cross_entropy_sum(logits_BC, jnp.arange(len(weights_B)), weights_B)

    forward, weight = one_way(anchors_BD, anchor_numbers_B, positive_numbers_B, slice(1, None))
    if not symmetric:
        return forward, weight
    backward, _ = one_way(positives_BD, positive_numbers_B, anchor_numbers_B, slice(0, 1))
    return 0.5 * (forward + backward), weight
