"""The BERT encoder (Devlin et al., arXiv:1810.04805): embeddings and a stack of post-norm layers.

Shapes: B batch, L length, Q sequences of a row, P positions that are read, D model width, V
vocabulary (padded), S hidden states. `lengths` are [B], or [B, Q] for rows of several sequences.

The parameters of all layers are stacked on a leading axis "layers" and run by `nn.scan`: one layout
whatever the unroll factor. Where all are unrolled, the last is computed only at the positions that
the heads read, if they say which. Tree of `Encoder`:

    embeddings/{word, position, segment}, embeddings/norm/{scale, bias}
    layers/attention/{query_key_value, output}/{kernel, bias}, attention_norm/{scale, bias},
        feed_forward/{inner, output}/{kernel, bias}, feed_forward_norm/{scale, bias}

What LoRA and adapters add to it is in `adaptation.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from bert_jax.errors import UserError
from bert_jax.models.adaptation import Adapter, add_low_rank_update
from bert_jax.models.attention import SelfAttention
from bert_jax.models.config import BertConfig
from bert_jax.models.kernels import load_kernel
from bert_jax.models.layers import (
    Dropout,
    LayerNorm,
    Projection,
    Update,
    contract,
    gelu,
    parameter,
)
from bert_jax.models.logical_axes import constrain_hidden
from bert_jax.models.packing import is_packed, positions_within
from bert_jax.models.word_lookup import look_up

Array = jax.Array


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.truncated_normal(config.initializer_stddev)
        padding = config.padded_vocabulary_size - config.vocabulary_size

        def word_init(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
            # Only real rows are drawn: another padding multiple starts from the same model.
            real = normal(key, (config.vocabulary_size, shape[1]), dtype)
            return jnp.pad(real, ((0, padding), (0, 0)))

        def table(name: str, init: nn.initializers.Initializer, rows: int, axis: str) -> Array:
            return parameter(self, name, init, (rows, config.width), (axis, "width"))

        self.word = table("word", word_init, config.padded_vocabulary_size, "vocabulary")
        self.position = table("position", normal, config.max_positions, "position")
        self.segment = table("segment", normal, config.segments, "segment")
        self.norm = LayerNorm(config.layer_norm_epsilon, jnp.dtype(config.compute_dtype))
        self.dropout = Dropout(config.hidden_dropout)

    def __call__(
        self, token_ids_BL: Array, segment_ids_BL: Array, lengths: Array, *, deterministic: bool
    ) -> Array:
        """Embeds int32 [B, L] tokens and segments as [B, L, D] in the compute type.

        Raises:
          UserError: L is larger than the position table.
        """
        length = token_ids_BL.shape[1]
        if length > self.config.max_positions:
            raise UserError(
                f"Sequence length {length} is larger than the model's max_positions "
                f"{self.config.max_positions}; shorten the sequences or raise max_positions."
            )
        segment_one_hot_BLS = jax.nn.one_hot(segment_ids_BL, self.config.segments)
        # No more is exchanged at a time than of a layer is gathered.
        hidden_BLD = look_up(self.word, token_ids_BL, self.config.layer_size)
        # Products with one-hot rows: their gradients are products too, not scatters into few rows.
        if is_packed(lengths):
            position_one_hot_BLL = jax.nn.one_hot(positions_within(lengths, length), length)
            # At the default precision a TPU would round the table.
            hidden_BLD += jnp.matmul(
                position_one_hot_BLL, self.position[:length], precision="highest"
            )
        else:
            # A product with ones: its gradient is one too, and no sum over the batch, for which XLA
            # on a GPU would lay all hidden states out with the batch last, and transpose them.
            ones_B1 = jnp.ones((len(hidden_BLD), 1), jnp.float32)
            hidden_BLD += contract(ones_B1, self.position[None, :length], 1)
        hidden_BLD += segment_one_hot_BLS @ self.segment
        hidden_BLD = self.norm(constrain_hidden(hidden_BLD))
        return self.dropout(hidden_BLD, deterministic=deterministic)


class FeedForward(nn.Module):
    """Two projections with an exact GELU between them."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden_BLD: Array) -> Update:
        """Maps [B, L, D] to what is added to it."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        inner_axes, output_axes = ("width", "feed_forward"), ("feed_forward", "width")
        inner = Projection(
            shape=(config.width, config.feed_forward_width),
            axes=inner_axes,
            stddev=config.initializer_stddev,
            dtype=dtype,
            name="inner",
        )
        if config.gelu_adds_bias:
            biased_gelu = load_kernel("triton_gelu:biased_gelu")
            inner_BLF = biased_gelu(inner.without_bias(hidden_BLD), inner.bias)
        else:
            projected_BLF = add_low_rank_update(
                config, "feed_forward_inner", hidden_BLD, inner(hidden_BLD), inner_axes
            )
            inner_BLF = gelu(projected_BLF)
        output = Projection(
            shape=(config.feed_forward_width, config.width),
            axes=output_axes,
            stddev=config.initializer_stddev,
            dtype=dtype,
            name="output",
        )
        if config.norm_adds_bias:
            return Update(output.without_bias(inner_BLF), output.bias)
        output_BLD = add_low_rank_update(
            config, "feed_forward_output", inner_BLF, output(inner_BLF), output_axes
        )
        return Update(output_BLD)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer: norm(x + dropout(block(x))) for attention, feed-forward."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.layer_norm_epsilon, dtype)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = LayerNorm(config.layer_norm_epsilon, dtype)
        self.dropout = Dropout(config.hidden_dropout)
        if config.adapter_width:
            self.attention_adapter = Adapter(config)
            self.feed_forward_adapter = Adapter(config)

    def __call__(
        self,
        hidden_BLD: Array,
        lengths: Array,
        deterministic: bool,
        all_hidden_states: bool,
        positions_BP: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Maps [B, L, D] to [B, L, D], given again as scan's per-layer output if asked for.

        With positions, only the hidden states there are computed: [B, P, D].
        """
        all_BLD = hidden_BLD
        if positions_BP is not None:
            hidden_BLD = _take(hidden_BLD, positions_BP)
        update = self.attention(
            hidden_BLD, all_BLD, lengths, positions_BP, deterministic=deterministic
        )
        hidden_BLD = self._add(hidden_BLD, update, "attention", deterministic)
        update = self.feed_forward(hidden_BLD)
        hidden_BLD = self._add(hidden_BLD, update, "feed_forward", deterministic)
        return hidden_BLD, hidden_BLD if all_hidden_states else None

    def _add(self, hidden_BLD: Array, update: Update, block: str, deterministic: bool) -> Array:
        """norm(hidden + dropout(update)) for a block, with its adapter if it has one."""
        norm: LayerNorm = getattr(self, f"{block}_norm")
        if update.bias_D is not None:
            normalise = partial(
                load_kernel("triton_norm:residual_norm"),
                update_BLD=update.hidden_BLD,
                update_bias_D=update.bias_D,
                dropout_rate=self.config.hidden_dropout,
                dropout_key=self.dropout.key(deterministic=deterministic),
            )
            return norm(hidden_BLD, normalise)
        update_BLD = self.dropout(update.hidden_BLD, deterministic=deterministic)
        if self.config.adapter_width:
            update_BLD = getattr(self, f"{block}_adapter")(update_BLD)
        return norm(constrain_hidden(hidden_BLD + update_BLD))


def _layer_type(config: BertConfig) -> type[nn.Module]:
    """`EncoderLayer` with the rematerialisation that the config asks for."""
    remat = config.remat
    if remat == "auto":
        remat = "none" if config.unrolled else "dots"
    if remat == "none":
        return EncoderLayer
    policies = jax.checkpoint_policies
    layer: type[nn.Module] = nn.remat(
        EncoderLayer,
        # Attention's products have a batch, and its scores are what takes the most memory.
        policy={
            "dots": policies.dots_with_no_batch_dims_saveable,
            "offload": policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
            "full": None,
        }[remat],
        # A loop keeps the passes apart. Without one, the compiler would find that it computes
        # the same thing twice, and keep it after all.
        prevent_cse=config.unrolled,
        static_argnums=(3, 4),  # deterministic, all_hidden_states
    )
    return layer


class Encoder(nn.Module):
    """BERT without heads."""

    config: BertConfig

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        stack = nn.scan(
            _layer_type(self.config),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.config.layers,
            unroll=self.config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = stack(self.config)

    def __call__(
        self,
        token_ids_BL: Array,
        segment_ids_BL: Array,
        lengths: Array,
        *,
        deterministic: bool,
        all_hidden_states: bool = False,
        positions_BP: Array | None = None,
    ) -> Array:
        """Encodes padded sequences.

        Args:
          token_ids_BL: int32 word pieces in [0, vocabulary_size).
          segment_ids_BL: int32 segments (BERT's token types).
          lengths: int32 [B]; the first `lengths[i]` tokens of row i are real. What comes after them
            changes no output at a real position; length 0 gives finite numbers. Or int32 [B, Q],
            the lengths of the sequences that row i holds, one after the other: they do not attend
            to each other, and each comes out as it would in a row of its own.
          deterministic: without dropout. Otherwise `apply` needs `rngs={"dropout": key}`.
          all_hidden_states: give the states between the layers too.
          positions_BP: int32 in [0, L), the positions that are read; not with `all_hidden_states`.
            Where the layers are unrolled, the last one computes nothing else.

        Returns:
          Hidden states [B, L, D] in the compute type, or [B, P, D] at the positions, or with
          `all_hidden_states` an array [layers + 1, B, L, D]: the embeddings first, the output last.

        Raises:
          UserError: L is larger than the position table.
        """
        embedded_BLD = self.embeddings(
            token_ids_BL, segment_ids_BL, lengths, deterministic=deterministic
        )
        if positions_BP is not None and self.config.unrolled and not self.is_initializing():
            return self._unrolled(embedded_BLD, lengths, deterministic, positions_BP)
        hidden_BLD, states_SBLD = self.layers(
            embedded_BLD, lengths, deterministic, all_hidden_states
        )
        if states_SBLD is not None:
            return jnp.concatenate([embedded_BLD[None], states_SBLD])
        return hidden_BLD if positions_BP is None else _take(hidden_BLD, positions_BP)

    def _unrolled(
        self, hidden_BLD: Array, lengths: Array, deterministic: bool, positions_BP: Array
    ) -> Array:
        """The layers one by one, the last of them at the positions only.

        A compiled loop cannot do so: its layers are alike, and to take one out of the stack that
        it runs over would copy the others' parameters.
        """
        layer = _layer_type(self.config)(self.config, parent=None)
        dtype = jnp.dtype(self.config.compute_dtype)
        # Rounded before they are taken apart, so that their gradients are stacked as narrow.
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf,
            nn.unbox(self.layers.variables["params"]),
        )
        stacked, structure = jax.tree.flatten(params)
        layers = zip(*map(_unstack, stacked), strict=True)
        last = self.config.layers - 1
        for number, leaves in enumerate(layers):
            hidden_BLD, _ = layer.apply(
                {"params": jax.tree.unflatten(structure, leaves)},
                hidden_BLD,
                lengths,
                deterministic,
                False,
                positions_BP if number == last else None,
                rngs=None if deterministic else {"dropout": self.make_rng("dropout")},
            )
        return hidden_BLD


@jax.custom_vjp
def _unstack(stacked: Array) -> tuple[Array, ...]:
    """The entries along the first axis, whose gradient is stacked once, in memory.

    That of indexing is a sum of arrays with zeros for the other entries, which XLA computes anew in
    each place that reads it: the gradient's norm took a tenth of BERT-large's step on an H100.
    """
    return tuple(stacked)


def _unstack_forward(stacked: Array) -> tuple[tuple[Array, ...], None]:
    return _unstack(stacked), None


def _unstack_backward(_: None, gradients: tuple[Array, ...]) -> tuple[Array]:
    return (lax.optimization_barrier(jnp.stack(gradients)),)


_unstack.defvjp(_unstack_forward, _unstack_backward)


def _take(hidden_BLD: Array, positions_BP: Array) -> Array:
    """The hidden states [B, P, D] at the positions."""
    return jnp.take_along_axis(hidden_BLD, positions_BP[..., None], axis=1)
