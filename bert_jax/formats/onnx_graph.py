"""Models as ONNX graphs, written node by node from the parameters; no PyTorch is needed.

Inputs and outputs have the names that Hugging Face's optimum gives them. Unlike our models, the
graph takes an attention mask, which may have its zeros anywhere.

Shapes: B batch, C choices, L length, D model width, N heads, K head width, V vocabulary, T targets.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bert_jax import __version__
from bert_jax.errors import UserError
from bert_jax.formats.naming import WORD_TABLE, to_tensors
from bert_jax.models.attention import MASKED_SCORE
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription

try:
    import onnx
except ModuleNotFoundError as error:
    raise UserError(
        "writing ONNX needs the package onnx; install it with pip install -e '.[onnx]'"
    ) from error

# The oldest with LayerNormalization, and the file format of its time: old runtimes read both.
_OPSET = 17
_IR_VERSION = 8
_MOST_BYTES = 2**31 - 1  # of a protocol buffer
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_Outputs: TypeAlias = dict[str, tuple[str, Sequence[str | int]]]  # value and axes, by name
_AXES = {"B": "batch_size", "C": "num_choices", "L": "sequence_length"}


def write_onnx(path: Path, params: Any, description: ModelDescription) -> None:
    """Writes a model as one ONNX file in float32.

    Inputs: int64 ``input_ids``, ``attention_mask`` and ``token_type_ids``, [B, L] (for a choice
    [B, C, L]), of any B and any L up to the position table. Outputs, float32:

    - no head: ``last_hidden_state`` [B, L, D], and with a pooler ``pooler_output`` [B, D];
    - pretraining: ``prediction_logits`` [B, L, V] at every position and
      ``seq_relationship_logits`` [B, 2]; without the next-sentence head the former alone, as
      ``logits``;
    - classes, labels, a value: ``logits`` [B, T]; choice: ``logits`` [B, C]; tags: ``logits``
      [B, L, T]; question answering: ``start_logits`` and ``end_logits`` [B, L].

    Args:
      path: the file.
      params: parameters, as ``description.model()`` takes them.
      description: the model.

    Raises:
      UserError: the model is larger than an ONNX file may be.
    """
    tensors = to_tensors(params, description)
    if sum(tensor.nbytes for tensor in tensors.values()) > _MOST_BYTES:
        raise UserError("the model is larger than the 2 GiB that an ONNX file may have")
    graph = _Graph(tensors)
    axes = "BCL" if description.head is Head.CHOICE else "BL"
    inputs = list(_INPUTS)
    if description.head is Head.CHOICE:
        flat = graph.op("Concat", graph.integers(-1), graph.size("input_ids", 2), axis=0)
        inputs = [graph.op("Reshape", name, flat) for name in inputs]
    hidden_BLD = _encode(graph, description.config, *inputs)
    outputs = _apply_head(graph, hidden_BLD, inputs[1], description)
    model = graph.finish(dict.fromkeys(_INPUTS, axes), outputs)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


class _Graph:
    """Nodes in the order of computation. A value is known by its name."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and gives the output's name."""
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds an array; the same name must always mean the same array."""
        self._constants.setdefault(name, array)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number {value}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(f"integers {values}", np.array(values, np.int64))

    def tensor(self, name: str) -> str:
        """A parameter, as PyTorch's module has it."""
        return self.constant(name, self._tensors[name])

    def size(self, value: str, axis: int) -> str:
        """The size of an axis, int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def dense(self, inputs: str, module: str) -> str:
        kernel = self.constant(f"{module}.kernel", self._tensors[f"{module}.weight"].T)
        return self.op("Add", self.op("MatMul", inputs, kernel), self.tensor(f"{module}.bias"))

    def norm(self, inputs: str, module: str, epsilon: float) -> str:
        scale, bias = self.tensor(f"{module}.weight"), self.tensor(f"{module}.bias")
        return self.op("LayerNormalization", inputs, scale, bias, axis=-1, epsilon=epsilon)

    def gelu(self, inputs: str) -> str:
        """The exact one: x / 2 * (1 + erf(x / sqrt(2)))."""
        erf = self.op("Erf", self.op("Mul", inputs, self.number(math.sqrt(0.5))))
        half = self.op("Mul", inputs, self.number(0.5))
        return self.op("Mul", half, self.op("Add", erf, self.number(1.0)))

    def finish(self, inputs: Mapping[str, str], outputs: _Outputs) -> onnx.ModelProto:
        """Makes the model.

        Args:
          inputs: axes, as letters, of each int64 input.
          outputs: the float32 outputs.
        """

        def info(name: str, kind: int, axes: Sequence[str | int]) -> onnx.ValueInfoProto:
            shape = [_AXES[axis] if isinstance(axis, str) else axis for axis in axes]
            return onnx.helper.make_tensor_value_info(name, kind, shape)

        names = [onnx.helper.make_node("Identity", [v], [n]) for n, (v, _) in outputs.items()]
        graph = onnx.helper.make_graph(
            [*self._nodes, *names],
            "bert",
            [info(name, onnx.TensorProto.INT64, axes) for name, axes in inputs.items()],
            [info(name, onnx.TensorProto.FLOAT, axes) for name, (_, axes) in outputs.items()],
            [
                onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
                for name, array in self._constants.items()
            ],
        )
        return onnx.helper.make_model(
            graph,
            producer_name="bert_jax",
            producer_version=__version__,
            opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )


def _encode(
    graph: _Graph,
    config: BertConfig,
    token_ids_BL: str,
    attention_mask_BL: str,
    segment_ids_BL: str,
) -> str:
    """The hidden states [B, L, D]."""
    prefix, epsilon = "bert.embeddings.", config.layer_norm_epsilon
    word_BLD = graph.op("Gather", graph.tensor(WORD_TABLE), token_ids_BL)
    segment_table = graph.tensor(f"{prefix}token_type_embeddings.weight")
    segment_BLD = graph.op("Gather", segment_table, segment_ids_BL)
    position_LD = graph.op(
        "Slice",
        graph.tensor(f"{prefix}position_embeddings.weight"),
        graph.integers(0),
        graph.size(token_ids_BL, 1),
    )
    hidden_BLD = graph.op("Add", graph.op("Add", word_BLD, position_LD), segment_BLD)
    hidden_BLD = graph.norm(hidden_BLD, f"{prefix}LayerNorm", epsilon)
    real_BL = graph.op("Cast", attention_mask_BL, to=onnx.TensorProto.BOOL)
    real_B11L = graph.op("Unsqueeze", real_BL, graph.integers(1, 2))
    for layer in range(config.layers):
        prefix = f"bert.encoder.layer.{layer}."
        update_BLD = _attend(graph, config, hidden_BLD, real_B11L, f"{prefix}attention.")
        hidden_BLD = graph.op("Add", hidden_BLD, update_BLD)
        hidden_BLD = graph.norm(hidden_BLD, f"{prefix}attention.output.LayerNorm", epsilon)
        inner_BLF = graph.gelu(graph.dense(hidden_BLD, f"{prefix}intermediate.dense"))
        update_BLD = graph.dense(inner_BLF, f"{prefix}output.dense")
        hidden_BLD = graph.op("Add", hidden_BLD, update_BLD)
        hidden_BLD = graph.norm(hidden_BLD, f"{prefix}output.LayerNorm", epsilon)
    return hidden_BLD


def _attend(graph: _Graph, config: BertConfig, hidden_BLD: str, real_B11L: str, prefix: str) -> str:
    """Self-attention with its output projection [B, L, D]."""

    def heads(name: str, order: Sequence[int]) -> str:
        flat_BLD = graph.dense(hidden_BLD, f"{prefix}self.{name}")
        # A size of 0 keeps the axis as it is.
        shape = graph.integers(0, 0, config.heads, config.head_width)
        return graph.op("Transpose", graph.op("Reshape", flat_BLD, shape), perm=order)

    query_BNLK = graph.op(
        "Mul", heads("query", (0, 2, 1, 3)), graph.number(1 / math.sqrt(config.head_width))
    )
    scores_BNLL = graph.op("MatMul", query_BNLK, heads("key", (0, 2, 3, 1)))
    scores_BNLL = graph.op("Where", real_B11L, scores_BNLL, graph.number(MASKED_SCORE))
    probabilities_BNLL = graph.op("Softmax", scores_BNLL, axis=-1)
    context_BNLK = graph.op("MatMul", probabilities_BNLL, heads("value", (0, 2, 1, 3)))
    context_BLNK = graph.op("Transpose", context_BNLK, perm=(0, 2, 1, 3))
    context_BLD = graph.op("Reshape", context_BLNK, graph.integers(0, 0, config.width))
    return graph.dense(context_BLD, f"{prefix}output.dense")


def _apply_head(
    graph: _Graph, hidden_BLD: str, attention_mask_BL: str, description: ModelDescription
) -> _Outputs:
    """The outputs of the model."""
    config = description.config

    def pooled_BD() -> str:
        first_BD = graph.op("Gather", hidden_BLD, graph.constant("first", np.array(0)), axis=1)
        return graph.op("Tanh", graph.dense(first_BD, "bert.pooler.dense"))

    def scores() -> str:
        averages = description.reads_mean
        read_BD = _mean(graph, hidden_BLD, attention_mask_BL) if averages else pooled_BD()
        return graph.dense(read_BD, "classifier")

    match description.head:
        case Head.NONE:
            states: _Outputs = {"last_hidden_state": (hidden_BLD, ("B", "L", config.width))}
            if description.pooler:
                states["pooler_output"] = (pooled_BD(), ("B", config.width))
            return states
        case Head.PRETRAINING:
            logits_BLV = _mlm_logits(graph, hidden_BLD, config)
            axes = ("B", "L", config.vocabulary_size)
            if not description.pooler:
                return {"logits": (logits_BLV, axes)}
            pair_logits_B2 = graph.dense(pooled_BD(), "cls.seq_relationship")
            return {
                "prediction_logits": (logits_BLV, axes),
                "seq_relationship_logits": (pair_logits_B2, ("B", 2)),
            }
        case Head.TAGGING:
            logits_BLT = graph.dense(hidden_BLD, "classifier")
            return {"logits": (logits_BLT, ("B", "L", len(description.labels)))}
        case Head.QUESTION_ANSWERING:
            logits_BL2 = graph.dense(hidden_BLD, "qa_outputs")
            return {
                name: (graph.op("Gather", logits_BL2, index, axis=2), ("B", "L"))
                for name, index in (
                    ("start_logits", graph.constant("first", np.array(0))),
                    ("end_logits", graph.constant("second", np.array(1))),
                )
            }
        case Head.CHOICE:
            choices = graph.op("Concat", graph.integers(-1), graph.size("input_ids", 1), axis=0)
            return {"logits": (graph.op("Reshape", scores(), choices), ("B", "C"))}
        case Head.CLASSIFICATION | Head.MULTI_LABEL | Head.REGRESSION:
            targets = 1 if description.head is Head.REGRESSION else len(description.labels)
            return {"logits": (scores(), ("B", targets))}


def _mean(graph: _Graph, hidden_BLD: str, attention_mask_BL: str) -> str:
    """The mean [B, D] of the real positions; that of none is zero."""
    real_BL = graph.op("Cast", attention_mask_BL, to=onnx.TensorProto.FLOAT)
    real_B1L = graph.op("Unsqueeze", real_BL, graph.integers(1))
    total_BD = graph.op("Squeeze", graph.op("MatMul", real_B1L, hidden_BLD), graph.integers(1))
    count_B1 = graph.op("ReduceSum", real_BL, graph.integers(1))
    return graph.op("Div", total_BD, graph.op("Max", count_B1, graph.number(1.0)))


def _mlm_logits(graph: _Graph, hidden_BLD: str, config: BertConfig) -> str:
    """Logits over the vocabulary at every position [B, L, V]."""
    prefix = "cls.predictions.transform."
    transformed_BLD = graph.norm(
        graph.gelu(graph.dense(hidden_BLD, f"{prefix}dense")),
        f"{prefix}LayerNorm",
        config.layer_norm_epsilon,
    )
    # Transposed in the graph, so that the table is stored once.
    word_table_DV = graph.op("Transpose", graph.tensor(WORD_TABLE), perm=(1, 0))
    products_BLV = graph.op("MatMul", transformed_BLD, word_table_DV)
    return graph.op("Add", products_BLV, graph.tensor("cls.predictions.bias"))
