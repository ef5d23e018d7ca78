"""Model FLOPs of training, and the peaks of known chips: the two sides of MFU."""

import re

from bert_jax.models.config import BertConfig

# Dense bfloat16 peak FLOP/s of one device as JAX lists it, by words of its `device_kind`
# (case ignored). The first match counts, so the more specific come first. Sources: the vendors'
# data sheets; figures with sparsity are halved. JAX lists a TPU v2 or v3 core, half a chip.
_PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("tpu v6 lite", 918e12),
    ("tpu v6e", 918e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),
    ("tpu v4", 275e12),
    ("h200 nvl", 835e12),
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("a100", 312e12),
)


def train_flops_per_token(
    config: BertConfig,
    length: float,
    decoded_share: float,
    read_share: float = 1.0,
    *,
    trains_encoder: bool = True,
) -> float:
    """FLOPs of the forward and backward pass for one token of a sequence.

    6 N + 12 layers width length + 6 p (width^2 + width vocabulary), where N = layers (4 width^2 +
    2 width feed_forward_width) are the weights of the layers' matrix products: 2 FLOPs a weight
    forward, twice that backward (the count of Kaplan et al., arXiv:2001.08361, plus attention and
    the decoder). Elementwise work, embeddings, the pooler and padding count as nothing. Under LoRA
    and adapters it is 4 N, since no gradient of the frozen weights is formed, and their own
    matrices, a per cent or so, count as nothing.

    Where the layers are unrolled, the last counts by `read_share`, but for its keys and values. An
    encoder that is frozen as a whole is a third of all: its forward pass.

    The length is that of the rows as they are computed, with padding, since attention is computed
    there too. For MFU over real tokens that is more than they need: 0.3% at length 128, and 1.2% at
    512, where 88% of BERT-base's positions are real.

    Args:
      config: the model.
      length: positions that a token attends to, which attention's cost grows with.
      decoded_share: p, the share of positions whose vocabulary logits are computed.
      read_share: the share of positions whose last hidden states the heads read.
      trains_encoder: whether anything of the encoder is trained, LoRA and adapters included.
    """
    width = config.width
    keys_and_values = 2 * width**2
    rest = 2 * width**2 + 2 * width * config.feed_forward_width
    last = read_share if config.unrolled else 1.0
    whole = config.layers - 1 + last  # layers, in what is computed at each position by itself
    weights = config.layers * keys_and_values + whole * rest
    attention = 12 * whole * width * length
    decoder = decoded_share * (width**2 + width * config.vocabulary_size)
    if not trains_encoder:
        return 2 * weights + attention / 3 + 6 * decoder
    return (4 if config.is_adapted else 6) * weights + attention + 6 * decoder


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, by `jax.Device.device_kind`; None if it is not known."""
    kind = device_kind.lower()
    for part, peak in _PEAK_FLOPS:
        if re.search(rf"\b{part}\b", kind):  # an A1000 is no A100
            return peak
    return None
