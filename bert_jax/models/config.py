"""The shape of a BERT encoder: its hyperparameters, the published sizes and the parameter count."""

import dataclasses
import difflib
import re
import sys
from numbers import Integral
from typing import Any

from bert_jax.errors import UserError

# Tables over the vocabulary are stored with a multiple of this many rows, so that they divide over
# a mesh and fill a TPU's lanes. The rows past `vocabulary_size` are zero and stay zero.
VOCABULARY_MULTIPLE = 128
_LARGEST_FLOAT = sys.float_info.max  # whole numbers may be larger
_TOO_MANY = 2**31  # rows, columns or layers: they are numbered in 32 bits

# (layers, width) of the models that google-research/bert named; heads = width / 64 and the
# feed-forward width = 4 * width in all of them and in the 24 miniatures of Turc et al.,
# "Well-Read Students Learn Better", arXiv:1908.08962.
SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
HEAD_WIDTH = 64

# The projections of a layer that LoRA can adapt. Query, key and value are stored as one kernel, but
# are adapted one by one, so that the choice is that of the literature.
LORA_TARGETS = (
    "query",
    "key",
    "value",
    "attention_output",
    "feed_forward_inner",
    "feed_forward_output",
)


# What the backward pass computes again, not to keep it: as it pays, nothing, some, all of a layer.
REMATERIALISATIONS = ("auto", "none", "dots", "offload", "full")

# Types of products and activations.
COMPUTE_DTYPES = ("float32", "bfloat16")

# Implementations of attention: what runs anywhere, and kernels for TPUs and for NVIDIA GPUs.
ATTENTIONS = ("xla", "splash", "cudnn", "triton")

# The implementations that fields name, by field.
KERNELS = {"attention": ATTENTIONS, "residual_norm": ("xla", "triton"), "gelu": ("xla", "triton")}
KERNEL_FIELDS = tuple(KERNELS)

# Where a kernel runs; XLA's programs run anywhere.
PLATFORMS = {"splash": "tpu", "cudnn": "gpu", "triton": "gpu"}

# Fields that say how a run computes, and nothing of the model: they stay out of its description.
RUN_FIELDS = (*KERNEL_FIELDS, "remat", "vocabulary_chunks")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Everything that decides a BERT model's parameters and computation.

    Attributes:
      vocabulary_size: real word pieces, without the padding of the stored tables.
      layers: transformer layers.
      width: width of the hidden states; a multiple of `heads`.
      heads: attention heads of `width / heads` each.
      feed_forward_width: inner width of the feed-forward blocks.
      max_positions: rows of the position table, the longest sequence that the model reads.
      segments: rows of the segment table.
      hidden_dropout: dropped share of the embeddings and of each block's output.
      attention_dropout: dropped share of the attention probabilities.
      layer_norm_epsilon: added to the variance in every LayerNorm.
      initializer_stddev: of the truncated normal that kernels and tables start from.
      compute_dtype: "float32" or "bfloat16", the type of matrix products and activations.
        Parameters, softmax, LayerNorm statistics and logits are float32 in both.
      unroll: layers that one iteration of the compiled loop runs. It changes speed and compile
        time, never the parameters' layout. As many as there are layers also let the last compute
        only what is read; results are the same but for rounding, and for the dropout that is drawn.
      attention: what computes it: "xla", anywhere; "splash", a kernel for TPUs; or "cudnn" and
        "triton", kernels for NVIDIA GPUs, in bfloat16. The kernels never write the scores to
        memory. "splash" and "cudnn" cannot drop any, so that `attention_dropout` must be 0. Results
        are the same but for rounding.
      residual_norm: what computes dropout, residual sum and LayerNorm at the end of a block: "xla",
        anywhere, or "triton", one kernel for NVIDIA GPUs. With LoRA or adapters it is always "xla".
        Results are the same but for rounding.
      gelu: what computes the feed-forward block's, with the bias before it: "xla", anywhere, or
        "triton", one kernel for NVIDIA GPUs. With LoRA or adapters it is always "xla". Results are
        the same but for rounding.
      remat: what the backward pass of a layer computes again, to save memory (rematerialisation,
        Chen et al., arXiv:1604.06174): "none"; "dots", all but the products with weights;
        "offload", the same, with these products kept in the host's memory; "full", everything from
        the layer's input on; or "auto", which is "dots" in a loop, where writing and reading the
        rest costs more than to compute it, and "none" where layers are unrolled and the compiler
        chooses. Results are the same but for rounding.
      vocabulary_chunks: in how many parts the masked tokens' loss is computed. More than one keep
        less in memory, and under FSDP gather less of the word table at a time; the decoder costs a
        third more. Results are the same but for rounding.
      lora_rank: rank of LoRA's updates (Hu et al., arXiv:2106.09685); 0 for none.
      lora_alpha: the updates are scaled by `lora_alpha / lora_rank`. The default is the paper's for
        RoBERTa-base.
      lora_targets: which projections are adapted, of `LORA_TARGETS`; query and value by default, as
        in the paper.
      adapter_width: inner width of adapters (Houlsby et al., arXiv:1902.00751), two a layer; 0 for
        none.

    Raises:
      UserError: a value is out of range, `width` is not divisible by `heads`, a target of LoRA is
        unknown, or the attention cannot do what the other fields say.
    """

    vocabulary_size: int
    layers: int
    width: int
    heads: int
    feed_forward_width: int
    max_positions: int = 512
    segments: int = 2
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-12
    initializer_stddev: float = 0.02
    compute_dtype: str = "float32"
    unroll: int = 1
    attention: str = "xla"
    residual_norm: str = "xla"
    gelu: str = "xla"
    remat: str = "auto"
    vocabulary_chunks: int = 1
    lora_rank: int = 0
    lora_alpha: float = 8.0
    lora_targets: tuple[str, ...] = ("query", "value")
    adapter_width: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        counts = (
            "vocabulary_size",
            "layers",
            "width",
            "heads",
            "feed_forward_width",
            "max_positions",
            "segments",
            "unroll",
            "vocabulary_chunks",
        )
        for name in counts:
            value = getattr(self, name)
            if not 1 <= value < _TOO_MANY:
                raise UserError(f"{name} is {value}; give a number from 1 to {_TOO_MANY - 1}.")
        for name in ("hidden_dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise UserError(f"{name} is {rate}; give a share from 0 up to, not including, 1.")
        for name in ("layer_norm_epsilon", "initializer_stddev"):
            value = getattr(self, name)
            if value < 0.0:
                raise UserError(f"{name} is {value}; give a small number from 0 up.")
        if self.width % self.heads:
            raise UserError(
                f"width {self.width} does not divide into {self.heads} heads; "
                "choose a width that is a multiple of heads."
            )
        if self.padded_vocabulary_size % self.vocabulary_chunks:
            raise UserError(
                f"vocabulary_chunks is {self.vocabulary_chunks}, which does not divide the "
                f"{self.padded_vocabulary_size} rows of the word table; choose a power of 2 up to "
                f"{VOCABULARY_MULTIPLE}."
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise UserError(
                f"compute_dtype is {self.compute_dtype!r}; choose one of "
                f"{', '.join(COMPUTE_DTYPES)}."
            )
        if self.remat not in REMATERIALISATIONS:
            raise UserError(
                f"remat is {self.remat!r}; choose one of {', '.join(REMATERIALISATIONS)}."
            )
        self._check_kernels()
        self._check_adaptation()

    def check_pairs(self) -> None:
        """Refuses pairs of texts where no segment tells them apart.

        Raises:
          UserError: there is one segment only.
        """
        if self.segments < 2:
            raise UserError(
                f"the model has {self.segments} segment, and pairs of texts need 2; give single "
                "texts, or another model"
            )

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not isinstance(value, Integral):
                raise UserError(f"{field.name} is {value!r}; give a whole number.")
            is_number = isinstance(value, int | float) and -_LARGEST_FLOAT < value < _LARGEST_FLOAT
            if field.type is float and not is_number:
                raise UserError(f"{field.name} is {value!r}; give a number.")

    def _check_kernels(self) -> None:
        for field, names in KERNELS.items():
            name = getattr(self, field)
            if name not in names:
                raise UserError(f"{field} is {name!r}; choose one of {', '.join(names)}.")
        if self.attention in ("splash", "cudnn") and self.attention_dropout:
            raise UserError(
                f"attention is {self.attention!r}, which cannot drop probabilities, and "
                f"attention_dropout is {self.attention_dropout}; set it to 0, or attention to "
                "'xla', or on a GPU to 'triton'."
            )
        if self.attention in ("cudnn", "triton") and self.compute_dtype != "bfloat16":
            raise UserError(
                f"attention is {self.attention!r}, which computes in bfloat16 only, and "
                f"compute_dtype is {self.compute_dtype!r}; set it to 'bfloat16', or attention to "
                "'xla'."
            )
        if self.attention == "triton" and self.head_width not in (16, 32, 64, 128):
            raise UserError(
                f"attention is 'triton', which takes heads of 16, 32, 64 or 128, and they are "
                f"{self.head_width} wide; set attention to 'xla'."
            )
        if self.attention == "cudnn" and (self.head_width % 8 or self.head_width > 128):
            raise UserError(
                f"attention is 'cudnn', which takes heads of a multiple of 8 up to 128, and they "
                f"are {self.head_width} wide; set attention to 'xla'."
            )

    def _check_adaptation(self) -> None:
        for name in ("lora_rank", "adapter_width"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; give 0 for none, or more.")
        if not self.lora_alpha > 0:
            raise UserError(f"lora_alpha is {self.lora_alpha}; give a number above 0.")
        # JSON has lists only, and a config is hashed.
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        known = set(self.lora_targets) <= set(LORA_TARGETS)
        if not known or len(set(self.lora_targets)) < max(1, len(self.lora_targets)):
            raise UserError(
                f"lora_targets is {self.lora_targets}; give one or more of "
                f"{', '.join(LORA_TARGETS)}, each once."
            )

    @property
    def unrolled(self) -> bool:
        """Whether the layers are compiled one by one, not as a loop."""
        return self.unroll >= self.layers

    @property
    def is_adapted(self) -> bool:
        """Whether the encoder has LoRA or adapters, and its own weights are therefore frozen."""
        return self.lora_rank > 0 or self.adapter_width > 0

    @property
    def norm_adds_bias(self) -> bool:
        """Whether blocks leave their last bias to the kernel that normalises what they give."""
        return self.residual_norm == "triton" and not self.is_adapted

    @property
    def gelu_adds_bias(self) -> bool:
        """Whether the feed-forward block's first bias is left to the kernel of its GELU."""
        return self.gelu == "triton" and not self.is_adapted

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the stored vocabulary tables, a multiple of 128."""
        return -(-self.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def layer_size(self) -> int:
        """How many numbers the kernels of a layer have."""
        return 4 * self.width**2 + 2 * self.width * self.feed_forward_width

    @property
    def layer_sized_chunks(self) -> int:
        """The fewest chunks of the word table, a power of 2, that are no larger than a layer.

        At most 128, which always divide it.
        """
        chunks = 1
        while (
            chunks < VOCABULARY_MULTIPLE
            and self.padded_vocabulary_size * self.width > chunks * self.layer_size
        ):
            chunks *= 2
        return chunks


def check_platform(field: str, kernel: str, platform: str) -> None:
    """Refuses a kernel that cannot run on a platform.

    Args:
      field: of `KERNEL_FIELDS`, which names the kernel.
      kernel: its name.
      platform: of the devices, as JAX calls it.

    Raises:
      UserError: it runs elsewhere only.
    """
    needed = PLATFORMS.get(kernel, platform)
    if needed != platform:
        raise UserError(
            f"model.{field}={kernel} runs on a {needed.upper()}, and the devices of this run are "
            f"of the platform {platform!r}; set --config.model.{field}=xla"
        )


def size_shape(size: str) -> dict[str, int]:
    """The fields of `BertConfig` that a published size sets.

    Args:
      size: a name in `SIZES`, or the numbers of a miniature such as "L4_H256" (4 layers, width 256;
        any width that is a multiple of 64).

    Raises:
      UserError: the size is unknown, or no multiple of the head width 64.
    """
    numbers = re.fullmatch(r"L(\d+)_H(\d+)", size)
    if size in SIZES:
        layers, width = SIZES[size]
    elif numbers:
        layers, width = int(numbers[1]), int(numbers[2])
    else:
        nearest = difflib.get_close_matches(size, SIZES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"Model size {size!r} is unknown (did you mean {nearest!r}?); choose one of "
            f"{', '.join(SIZES)}, or give layers and width as in 'L4_H256'."
        )
    if width == 0 or width % HEAD_WIDTH:
        nearest_width = max(1, round(width / HEAD_WIDTH)) * HEAD_WIDTH
        raise UserError(
            f"Model size {size!r} has width {width}, which is not a multiple of the head width "
            f"{HEAD_WIDTH}; choose a width such as {nearest_width}."
        )
    return {
        "layers": layers,
        "width": width,
        "heads": width // HEAD_WIDTH,
        "feed_forward_width": 4 * width,
        "unroll": default_unroll(layers),
    }


def default_unroll(layers: int) -> int:
    """Few layers run faster unrolled, many compile faster as a loop."""
    return layers if layers <= 6 else 1


def sized_config(size: str, vocabulary_size: int, **settings: Any) -> BertConfig:
    """The config of a published size (see `size_shape`), with other fields set by `settings`."""
    return BertConfig(vocabulary_size=vocabulary_size, **(size_shape(size) | settings))


def count_parameters(config: BertConfig, next_sentence: bool = True) -> int:
    """Parameters of the pretraining model, as the literature counts them.

    The padding rows of the vocabulary tables do not count, and the decoder that is tied to the word
    table counts once: BERT-base has 110,106,428. What LoRA and adapters add counts.

    Args:
      config: the model.
      next_sentence: whether the model has the pooler and the next-sentence head.
    """
    width, inner = config.width, config.feed_forward_width
    norm = 2 * width
    embeddings = (config.vocabulary_size + config.max_positions + config.segments) * width + norm
    attention = 4 * (width * width + width) + norm
    feed_forward = (width * inner + inner) + (inner * width + width) + norm
    masked_head = (width * width + width) + norm + config.vocabulary_size
    next_sentence_head = (width * width + width) + (2 * width + 2)
    layer = attention + feed_forward + _count_adaptation(config)
    total = embeddings + config.layers * layer + masked_head
    return total + next_sentence_head if next_sentence else total


def _count_adaptation(config: BertConfig) -> int:
    """What LoRA and adapters add to one layer."""
    width, adapter_width = config.width, config.adapter_width
    adapters = 2 * (2 * width * adapter_width + adapter_width + width) if adapter_width else 0
    inputs_and_outputs = (
        width + (config.feed_forward_width if target.startswith("feed_forward") else width)
        for target in config.lora_targets
    )
    return config.lora_rank * sum(inputs_and_outputs) + adapters
