"""Checkpoints of google-research/bert (TensorFlow 1): ``bert_model.ckpt.*``.

TensorFlow reads them, and is needed for nothing else: the extra ``tensorflow`` brings it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.formats.hugging_face import ForeignModel, build_model
from bert_jax.formats.json_file import read_object
from bert_jax.formats.tensor_files import from_flax_name

_CONFIG = "bert_config.json"
_VOCABULARY = "vocab.txt"
# What optimizers keep beside a variable, and for all of them.
_OPTIMIZER_SLOT = re.compile(
    r"/((adam|lamb|lars)_[mv]|Adam(_1)?|Momentum)$|^(global_step|beta[12]_power|loss_scale)$"
)
# Variables that are not named after a layer; those of heads are [out, in] already.
_NAMES = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
}


def read_tensorflow_checkpoint(checkpoint: Path) -> ForeignModel:
    """Reads a checkpoint with the ``bert_config.json`` and the ``vocab.txt`` beside it.

    Args:
      checkpoint: ``DIR/bert_model.ckpt``, what the names of its files have in common.

    Raises:
      UserError: TensorFlow is not installed, or the files cannot be read or are not BERT's.
    """
    if not checkpoint.name:
        raise UserError(f"{checkpoint} is a directory; name the checkpoint, as bert_model.ckpt")
    checkpoint = checkpoint.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", checkpoint.name))
    if not checkpoint.with_name(checkpoint.name + ".index").is_file():
        raise UserError(
            f"{checkpoint} is no TensorFlow checkpoint: there is no {checkpoint.name}.index; give "
            "what the names of its files have in common, such as DIR/bert_model.ckpt"
        )
    fields = read_object(checkpoint.with_name(_CONFIG))
    tokenizer = WordPieceTokenizer.from_file(checkpoint.with_name(_VOCABULARY))
    model = build_model(fields, _read_tensors(checkpoint), tokenizer, str(checkpoint))
    habit = "lower-cased, for few tokens" if tokenizer.lowercase else "cased, for many tokens"
    return model._replace(notes=(f"text is {habit} of {_VOCABULARY} have capitals", *model.notes))


def _read_tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    tensorflow = _import_tensorflow()
    try:
        reader = tensorflow.train.load_checkpoint(str(checkpoint))
        names = [n for n in reader.get_variable_to_shape_map() if not _OPTIMIZER_SLOT.search(n)]
        variables = {name: reader.get_tensor(name) for name in names}
    except Exception as error:  # TensorFlow has no one class for what a damaged file may raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{checkpoint} is damaged or incomplete ({reason}); copy it again"
        ) from error
    return dict(_rename(name, array) for name, array in variables.items())


def _rename(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if name in _NAMES:
        return _NAMES[name], array
    if name.endswith("_embeddings"):
        name += "/embedding"
    return from_flax_name(re.sub(r"/layer_(\d+)/", r"/layer/\1/", name), array)


def _import_tensorflow() -> Any:
    try:
        import tensorflow
    except ModuleNotFoundError:
        raise UserError(
            "reading a TensorFlow checkpoint needs TensorFlow; "
            "install it with pip install -e '.[tensorflow]'"
        ) from None
    # It would otherwise take all of the memory that JAX computes in.
    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow
