"""How well texts find their partners among all of a data set.

Shapes: N pairs, C distinct candidates, D width, R rows of a block.
"""

import numpy as np

# The cosines of a block of rows with all candidates are held at once.
_ROWS_AT_ONCE = 1024


def score_retrieval(
    embeddings_N2D: np.ndarray, text_numbers_N2: np.ndarray, scale: float
) -> dict[str, float]:
    """Lets the first text of each pair search for the second among the second texts of all pairs.

    Equal texts are one candidate, and a query never finds itself. A candidate that scores as high
    as the right one stands before it, so a model that sees no difference finds nothing.

    Args:
      embeddings_N2D: float32 of length 1.
      text_numbers_N2: int; equal texts have equal numbers.
      scale: the inverse temperature of the loss.

    Returns:
      ``recall_at_1``; ``mean_reciprocal_rank``; and ``loss``, the one-way ranking loss with all
      candidates, which, unlike that of a batch, does not depend on the batch's size.
    """
    numbers_C, first_C, answer_N = np.unique(
        text_numbers_N2[:, 1], return_index=True, return_inverse=True
    )
    candidates_CD = embeddings_N2D[first_C, 1]
    ranks, losses = [], []
    for start in range(0, len(embeddings_N2D), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        scores_RC = scale * (embeddings_N2D[block, 0] @ candidates_CD.T).astype(np.float64)
        is_answer_RC = np.arange(len(numbers_C)) == answer_N[block, None]
        is_query_RC = numbers_C == text_numbers_N2[block, :1]
        scores_RC[is_query_RC & ~is_answer_RC] = -np.inf
        right_R1 = scores_RC[is_answer_RC][:, None]
        ranks.append(np.sum(scores_RC >= right_R1, axis=1))
        losses.append(np.log(np.sum(np.exp(scores_RC - right_R1), axis=1)))
    ranks_N = np.concatenate(ranks)
    return {
        "recall_at_1": float(np.mean(ranks_N == 1)),
        "mean_reciprocal_rank": float(np.mean(1 / ranks_N)),
        "loss": float(np.mean(np.concatenate(losses))),
    }
