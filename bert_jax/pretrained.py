"""A trained model as one object, from any place that holds one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import ASSET, ModelDescription
from bert_jax.training.checkpoints import Checkpoints
from bert_jax.training.sharding import abstract_parameters, make_mesh


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and its vocabulary.

    Attributes:
      description: what the model is.
      params: tree of float32 arrays, as ``description.model()`` takes it.
      tokenizer: the vocabulary.
    """

    description: ModelDescription
    params: Any
    tokenizer: WordPieceTokenizer

    @property
    def config(self) -> BertConfig:
        """The encoder's shape."""
        return self.description.config

    @property
    def assets(self) -> dict[str, str]:
        """What a checkpoint carries along of it."""
        return {"tokenizer.json": self.tokenizer.to_json(), ASSET: self.description.to_json()}

    @property
    def model(self) -> nn.Module:
        """The flax module that ``params`` belong to."""
        return self.description.model()


def load(path: str | Path, step: str = "latest", mesh: Mesh | None = None) -> Pretrained:
    """Loads a model, with no need of the data or the config that it was trained with.

    Args:
      path: a run's working directory.
      step: ``latest``, ``best`` or a number.
      mesh: where parameters are put; over all devices by default.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    with Checkpoints(path, read_only=True) as checkpoints:
        number = checkpoints.choose(step)
        record = checkpoints.record(number)
        if ASSET not in record.assets:
            raise UserError(
                f"{path} is a run of {record.config['task']!r}, which has no BERT model"
            )
        description = ModelDescription.from_json(record.assets[ASSET])
        mesh = mesh or make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        abstract = abstract_parameters(description.initialise, mesh)
        params = checkpoints.restore_params(number, abstract)
        tokenizer = WordPieceTokenizer.from_json(record.assets["tokenizer.json"])
        return Pretrained(description, jax.block_until_ready(params), tokenizer)
