"""The commands ``embed`` and ``similar``: vectors of texts, and the texts whose are nearest.

Shapes: Q queries, N texts of a block, K texts kept, D width.
"""

import argparse
from collections.abc import Iterable, Iterator

import numpy as np

from bert_jax.data.text_rows import make_text_rows
from bert_jax.errors import UserError
from bert_jax.prediction.batches import apply_to_stream
from bert_jax.prediction.command import Command, add_batch_flag
from bert_jax.prediction.outputs import ARRAY_SUFFIX, Answer, write_answers, write_npy
from bert_jax.prediction.sources import Example, read_examples, read_file, whole_lines
from bert_jax.pretrained import Pretrained


def _embed_stream(
    model: Pretrained, examples: Iterable[Example], batch_size: int
) -> Iterator[tuple[list[Example], np.ndarray]]:
    longest = model.description.max_length
    blocks = apply_to_stream(
        model.embed,
        examples,
        lambda block: make_text_rows(
            [example.fields["text"] for example in block], None, model.tokenizer, max_length=longest
        ),
        max_length=longest,
        batch_size=batch_size,
        mesh=model.mesh,
        packs=True,
    )
    return ((block, vectors) for block, _, vectors in blocks)


def _embed(model: Pretrained, arguments: argparse.Namespace) -> None:
    examples = read_examples(arguments, whole_lines(arguments))
    blocks = _embed_stream(model, examples, arguments.batch_size)
    if arguments.output is not None and arguments.output.endswith(ARRAY_SUFFIX):
        if arguments.json:
            raise UserError("--json and an --output that ends in .npy contradict; give one of them")
        write_npy((vectors for _, vectors in blocks), arguments.output, model.config.width)
        return
    answers = (
        Answer(
            example.fields | {"embedding": vector.tolist()},
            " ".join(f"{number:.6g}" for number in vector.tolist()),
        )
        for block, vectors in blocks
        for example, vector in zip(block, vectors, strict=True)
    )
    write_answers(answers, arguments.output, as_json=arguments.json)


def _similar(model: Pretrained, arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top} must be at least 1")
    reader = whole_lines(arguments)
    queries = list(read_examples(arguments, reader))
    vectors_QD = _unit(model.encode([q.fields["text"] for q in queries], arguments.batch_size))
    best_QK = np.zeros((len(queries), 0), np.float32)
    found: list[list[Example]] = [[] for _ in queries]
    among = read_file(arguments.among, reader)
    for block, vectors_ND in _embed_stream(model, among, arguments.batch_size):
        cosines_QN = np.concatenate([best_QK, vectors_QD @ _unit(vectors_ND).T], axis=1)
        # Of equal cosines, the text that came first stands first.
        order_QK = np.argsort(-cosines_QN, axis=1, kind="stable")[:, : arguments.top]
        found = [
            [(*before, *block)[place] for place in order.tolist()]
            for before, order in zip(found, order_QK, strict=True)
        ]
        best_QK = np.take_along_axis(cosines_QN, order_QK, axis=1)
    answers = (
        _similar_texts(query, examples, cosines.tolist())
        for query, examples, cosines in zip(queries, found, best_QK, strict=True)
    )
    write_answers(answers, arguments.output, as_json=arguments.json)


def _similar_texts(query: Example, found: list[Example], cosines: list[float]) -> Answer:
    lines = [f"  {c:7.4f}  {e.fields['text']}" for e, c in zip(found, cosines, strict=True)]
    record = query.fields | {
        "similar": [
            {"text": e.fields["text"], "place": e.place, "cosine": c}
            for e, c in zip(found, cosines, strict=True)
        ]
    }
    return Answer(record, "\n".join([query.fields["text"], *lines]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def _add_embed_flags(parser: argparse.ArgumentParser) -> None:
    add_batch_flag(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text")


def _add_similar_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--among", required=True, metavar="FILE", help="the texts to search, as --input has them"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="texts (default 5)")
    add_batch_flag(parser)
    parser.add_argument("texts", nargs="*", metavar="QUERY", help="a text")


EMBED = Command(
    "embed",
    "a vector of each text; an --output that ends in .npy gets one array",
    (),
    _add_embed_flags,
    _embed,
)
SIMILAR = Command(
    "similar", "the texts of a file that are most like a text", (), _add_similar_flags, _similar
)
