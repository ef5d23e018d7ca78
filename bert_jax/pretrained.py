"""A trained model as one object, from any place that holds one.

Shapes: B batch, L length, Q sequences of a row, D model width.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from bert_jax.data.text_rows import make_text_rows
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.adapter_file import base_fingerprint, read_adapter
from bert_jax.formats.hugging_face import is_model_directory, read_model
from bert_jax.formats.hugging_face_tokenizer import read_tokenizer
from bert_jax.formats.sentence_transformers import read_layout
from bert_jax.models.adaptation import base_params
from bert_jax.models.config import BertConfig
from bert_jax.models.description import ModelDescription, Pooling
from bert_jax.models.encoder import Encoder
from bert_jax.models.pooling import sentence_embeddings
from bert_jax.prediction.batches import apply_to_rows, mesh_of
from bert_jax.storage import is_directory
from bert_jax.training.assets import description_in, model_assets, tokenizer_in
from bert_jax.training.checkpoints import DIRECTORY, Checkpoints, RunRecord
from bert_jax.training.sharding import abstract_parameters, make_mesh, unbox

# The task of a checkpoint that no run of ours made, by its config.
CONVERTED = "converted"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and its vocabulary.

    Attributes:
      description: what the model is.
      params: tree of float32 arrays, as ``description.model()`` takes it.
      tokenizer: the vocabulary.
      record: what its checkpoint says of its run; None for a Hugging Face directory.
      notes: of a Hugging Face directory, and of what was made of one by ``convert``, a sentence for
        each tensor that was not used or had to be initialised, and for whatever else did not pass
        over.
    """

    description: ModelDescription
    params: Any
    tokenizer: WordPieceTokenizer
    record: RunRecord | None = None
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> BertConfig:
        """The encoder's shape."""
        return self.description.config

    @property
    def assets(self) -> dict[str, str]:
        """What a checkpoint carries along of it."""
        return model_assets(self.description, self.tokenizer)

    @property
    def model(self) -> nn.Module:
        """The flax module that ``params`` belong to."""
        return self.description.model()

    def in_dtype(self, compute_dtype: str) -> "Pretrained":
        """The same model, with products and activations in ``float32`` or ``bfloat16``.

        Parameters, softmax, LayerNorm statistics, embeddings and logits are float32 in both.

        Raises:
          UserError: it is another type.
        """
        config = dataclasses.replace(self.config, compute_dtype=compute_dtype)
        return dataclasses.replace(
            self, description=dataclasses.replace(self.description, config=config)
        )

    def encode(self, texts: Iterable[str], batch_size: int = 32) -> np.ndarray:
        """Embeds texts, as the description says: their pooling, their length.

        Texts are encoded with others of about their length, short ones in rows that they share;
        longer ones than ``max_length`` are cut there. Each combination of batch and padded length
        is compiled once.

        Args:
          texts: any number of texts.
          batch_size: how many are encoded at once.

        Returns:
          float32 [len(texts), D], in the order of the texts.

        Raises:
          UserError: ``batch_size`` is no whole number of at least 1, or ``texts`` is a single text
            or holds something else.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts; write encode([text])")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"encode takes texts, and number {number} is {text!r}; leave it out, or make "
                    "it a str"
                )
        if not texts:
            return np.zeros((0, self.config.width), np.float32)
        longest = self.description.max_length
        rows = make_text_rows(texts, None, self.tokenizer, max_length=longest)
        embeddings_ND: np.ndarray = apply_to_rows(
            self.embed,
            rows,
            max_length=longest,
            batch_size=batch_size,
            mesh=self.mesh,
            packs=True,
        )
        return embeddings_ND

    def embed(self, batch: Mapping[str, Any]) -> jax.Array:
        """Embeds a batch of tokens; returns before they are computed.

        Args:
          batch: int32 ``token_ids``, ``segment_ids`` [B, L] and ``lengths`` [B], or [B, Q] of
            rows that several texts share.

        Returns:
          float32 [B, D], or [B, Q, D].
        """
        # All positions are read, so that unrolled layers would gain nothing: they took a tenth
        # longer on a CPU, and three times as long to compile.
        return _embed(
            dataclasses.replace(self.config, unroll=1),
            self.description.pooling,
            self.description.normalize,
            self.params["encoder"],
            batch["token_ids"],
            batch["segment_ids"],
            batch["lengths"],
        )

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the parameters are laid out over; None where they are on no mesh."""
        return mesh_of(self.params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(
    config: BertConfig,
    pooling: Pooling,
    normalize: bool,
    encoder_params: Any,
    token_ids_BL: jax.Array,
    segment_ids_BL: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    encoder = Encoder(config).bind({"params": encoder_params})
    hidden_BLD = encoder(token_ids_BL, segment_ids_BL, lengths, deterministic=True)
    return sentence_embeddings(hidden_BLD, lengths, pooling, normalize=normalize)


def load(path: str | Path, step: str | int = "latest", mesh: Mesh | None = None) -> Pretrained:
    """Loads a model, with no need of the data or the config that it was trained with.

    Args:
      path: a run's working directory, one of the steps in its ``checkpoints``, or a directory of
        Hugging Face's ``transformers`` or of ``sentence-transformers``.
      step: of a working directory: ``latest``, ``best`` or a number. Other places have but one.
      mesh: where parameters are put; over all devices by default.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    mesh = mesh or make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    place = _find(path, step)
    if isinstance(place, _Step):
        return _load_checkpoint(place, mesh)
    model = read_model(place)
    abstract = abstract_parameters(model.description.initialise, mesh)
    params = jax.tree.map(
        lambda array, leaf: jax.device_put(array, leaf.sharding), model.params, abstract
    )
    return Pretrained(model.description, params, model.tokenizer, notes=model.notes)


def load_adapter(path: str | Path, base: Pretrained) -> Pretrained:
    """Puts what `save_adapter` wrote on the encoder that it was trained on.

    The base is not changed: several adapted models may share its arrays.

    Args:
      path: the file.
      base: the encoder; its heads, and LoRA if it has any, are left out.

    Returns:
      The adapted model, with the base's vocabulary.

    Raises:
      UserError: the file is missing, damaged or of another format, or the base is another one.
    """
    adapter = read_adapter(path)
    description = adapter.description
    if adapter.base_fingerprint != base_fingerprint(base.params, base.config):
        raise UserError(
            f"{path} was trained on another base model (fingerprint "
            f"{adapter.base_fingerprint[:12]}) than the one given; load it onto that one"
        )
    flat = flatten_dict(base_params(base.params)) | {
        tuple(name.split("/")): jnp.asarray(array) for name, array in adapter.tensors.items()
    }
    expected = flatten_dict(
        jax.eval_shape(lambda key: unbox(description.initialise(key)), jax.random.key(0))
    )
    found, wanted = (
        {name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (flat, expected)
    )
    for name, _ in sorted(found.items() ^ wanted.items()):
        raise UserError(
            f"{path} is damaged: its parameter {'/'.join(name)} is missing, superfluous or of a "
            "wrong shape or type; save it anew"
        )
    return Pretrained(description, unflatten_dict(flat), base.tokenizer)


def load_tokenizer(path: str | Path, step: str | int = "latest") -> WordPieceTokenizer:
    """Loads the vocabulary alone of what ``load`` loads.

    Raises:
      UserError: there is no such model, or its vocabulary cannot be read.
    """
    place = _find(path, step)
    if isinstance(place, _Step):
        with Checkpoints(place.workdir, read_only=True) as checkpoints:
            return _model_in(place, checkpoints.record(checkpoints.choose(place.which)))[1]
    layout = read_layout(place)
    return read_tokenizer(place if layout is None else layout.transformer)[0]


class _Step(NamedTuple):
    """A checkpoint of a run, by its number, or as ``latest`` or ``best``."""

    workdir: epath.Path
    which: str


def _find(path: str | Path, step: str | int) -> _Step | Path:
    """The checkpoint or the Hugging Face directory that a path means."""
    directory, which = epath.Path(path).expanduser(), str(step)  # a bucket's name too
    is_step = directory.parent.name == DIRECTORY and directory.name.isdecimal()
    if not is_step and is_directory(directory / DIRECTORY):
        return _Step(directory, which)
    if which not in ("latest", directory.name if is_step else "latest"):
        raise UserError(
            f"{path} is {'one step of a run' if is_step else 'no run'}, so that there is no step "
            f"{which!r} to choose; give the run's workdir, or leave the step out"
        )
    if is_step:
        return _Step(directory.parent.parent, directory.name)
    if not is_model_directory(Path(directory)):
        raise UserError(
            f"{path} holds no model; give a run's workdir, a step of its {DIRECTORY}, or a "
            "directory with the config.json of a Hugging Face model"
        )
    return Path(directory)


def _model_in(place: _Step, record: RunRecord) -> tuple[ModelDescription, WordPieceTokenizer]:
    description, tokenizer = description_in(record.assets), tokenizer_in(record.assets)
    if description is None or tokenizer is None:
        raise UserError(
            f"{place.workdir} is a run of {record.config['task']!r}, which has no BERT model"
        )
    return description, tokenizer


def _load_checkpoint(place: _Step, mesh: Mesh) -> Pretrained:
    with Checkpoints(place.workdir, read_only=True) as checkpoints:
        number = checkpoints.choose(place.which)
        record = checkpoints.record(number)
        description, tokenizer = _model_in(place, record)
        abstract = abstract_parameters(description.initialise, mesh)
        params = checkpoints.restore_params(number, abstract)
        notes = tuple(record.notes) if record.config["task"] == CONVERTED else ()
        return Pretrained(description, jax.block_until_ready(params), tokenizer, record, notes)
