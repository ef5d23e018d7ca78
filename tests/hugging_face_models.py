"""Small BERT models of ``transformers`` with random weights, and how ours answer beside them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers

from bert_jax.models.description import Head
from bert_jax.pretrained import Pretrained

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "cat", "dog", "sat", "##s", "on", "mat", "a", "b", "##b", "!", ",", "##c", "eat"),
)
TEXTS = ("The cat sats on the mat!", "a abc dog", "zebra, eats [MASK]")
TOLERANCE = 1e-5  # design invariant 7
SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
_LABELS = {"id2label": {0: "no", 1: "yes", 2: "maybe"}}


class Case(NamedTuple):
    """A class of ``transformers`` and what it is here."""

    architecture: str
    head: Head
    settings: dict[str, Any]
    pooler: bool = True


CASES = {
    "encoder": Case("BertModel", Head.NONE, {}),
    "pretraining": Case("BertForPreTraining", Head.PRETRAINING, {}),
    "masked": Case("BertForMaskedLM", Head.PRETRAINING, {}, pooler=False),
    "classification": Case("BertForSequenceClassification", Head.CLASSIFICATION, _LABELS),
    "multi_label": Case(
        "BertForSequenceClassification",
        Head.MULTI_LABEL,
        _LABELS | {"problem_type": "multi_label_classification"},
    ),
    "regression": Case("BertForSequenceClassification", Head.REGRESSION, {"num_labels": 1}),
    "tagging": Case("BertForTokenClassification", Head.TAGGING, _LABELS),
    "answering": Case("BertForQuestionAnswering", Head.QUESTION_ANSWERING, {}),
    "choice": Case("BertForMultipleChoice", Head.CHOICE, {"num_labels": 1}),
}


def make_model(case: Case, **settings: Any) -> torch.nn.Module:
    """A model with every parameter random, LayerNorms too."""
    config = transformers.BertConfig(**(SHAPE | case.settings | settings))
    model = getattr(transformers, case.architecture)(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def write_model(directory: Path, case: Case, **settings: Any) -> torch.nn.Module:
    """The same in a directory, as ``transformers`` saves it."""
    model = make_model(case, **settings)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def write_tokenizer(directory: Path) -> None:
    """The vocabulary as ``transformers`` saves it."""
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(directory)


def inputs(rows: int = 3, length: int = 12) -> dict[str, np.ndarray]:
    """Padded pairs of random tokens, int64 [rows, length], under the names of ``transformers``."""
    rng = np.random.default_rng(5)
    lengths = np.linspace(length, 4, rows).astype(int)
    columns = np.arange(length)
    real = (columns < lengths[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(0, len(VOCABULARY), (rows, length)) * real,
        "token_type_ids": (columns >= 3).astype(np.int64) * real,
        "attention_mask": real,
    }


def their_outputs(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ``transformers`` computes, by its own names."""
    if model.config.architectures == ["BertForMultipleChoice"]:
        batch = {name: array[None] for name, array in batch.items()}
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def our_outputs(loaded: Pretrained, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our model computes, under the names of ``transformers``."""
    rows, length = batch["input_ids"].shape
    arrays = [
        batch["input_ids"].astype(np.int32),
        batch["token_type_ids"].astype(np.int32),
        batch["attention_mask"].sum(axis=1).astype(np.int32),
    ]
    description = loaded.description
    if description.head is Head.PRETRAINING:
        arrays.append(np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)))
    apply = jax.jit(
        lambda params: loaded.model.apply({"params": params}, *arrays, deterministic=True)
    )
    outputs = jax.tree.map(np.asarray, apply(loaded.params))
    match description.head:
        case Head.NONE:
            named = {"last_hidden_state": outputs[0], "pooler_output": outputs[1]}
        case Head.PRETRAINING:
            logits = outputs[0][..., : loaded.config.vocabulary_size]
            named = {"prediction_logits": logits, "seq_relationship_logits": outputs[1]}
            if not description.pooler:
                named = {"logits": logits}
        case Head.QUESTION_ANSWERING:
            named = {"start_logits": outputs[..., 0], "end_logits": outputs[..., 1]}
        case Head.CHOICE:
            named = {"logits": outputs[None, :, 0]}
        case _:
            named = {"logits": outputs}
    return {name: value for name, value in named.items() if value is not None}


def assert_same_outputs(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], real: np.ndarray
) -> None:
    """Equal at every real position, to the design's tolerance."""
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        found = ours[name]
        assert found.shape == wanted.shape, name
        if wanted.shape[:2] == real.shape:
            found, wanted = found[real > 0], wanted[real > 0]
        allowed = TOLERANCE * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed, err_msg=name)
