"""The command ``tag``: the entities of texts.

Shapes: B batch, L length, T tags.
"""

import argparse
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from seqeval.metrics.sequence_labeling import get_entities

from bert_jax.data.tag_windows import TagWindows, make_tag_windows
from bert_jax.data.tagged_sentences import OUTSIDE, Sentence, is_entity_tag, split_words
from bert_jax.models.description import Head
from bert_jax.prediction.batches import apply_to_stream
from bert_jax.prediction.command import Command, add_batch_flag
from bert_jax.prediction.outputs import Answer, write_answers
from bert_jax.prediction.sources import Fields, Reader, read_examples, text_column
from bert_jax.pretrained import Pretrained
from bert_jax.tasks.fine_tuning import apply_model


@dataclass(frozen=True)
class Words:
    """A text and its words.

    Attributes:
      text: the text.
      spans: for each word its first character, and the one after its last.
    """

    text: str
    spans: Sequence[tuple[int, int]]

    @classmethod
    def of_text(cls, text: str) -> "Words":
        """Splits a text as ``split_words`` does."""
        return cls(text, split_words(text))

    @classmethod
    def of_list(cls, words: Sequence[str]) -> "Words":
        """Words as they are, with a space between each two."""
        starts = itertools.accumulate((len(word) + 1 for word in words), initial=0)
        spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]
        return cls(" ".join(words), spans)

    @property
    def words(self) -> tuple[str, ...]:
        """The words."""
        return tuple(self.text[start:end] for start, end in self.spans)


class Entity(NamedTuple):
    """An entity: its type, and the characters ``text[start:end]`` that it is."""

    type: str
    text: str
    start: int
    end: int


@functools.partial(jax.jit, static_argnums=(0, 2))
def _labels(
    model: nn.Module, params: Any, longest: int, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """The most probable label of every column, filled up to one length."""
    labels_BL = jnp.argmax(apply_model(model, params, batch), axis=-1)
    return jnp.pad(labels_BL, ((0, 0), (0, longest - labels_BL.shape[1])))


def tag_stream(
    model: Pretrained, texts: Iterable[Words], *, batch_size: int = 32
) -> Iterator[tuple[Words, list[str]]]:
    """Tags the words of any number of texts, in memory that does not grow with them.

    Texts too long for the model are read in windows that overlap.

    Args:
      model: for ``Head.TAGGING``.
      texts: the texts and their words.
      batch_size: windows at once.

    Yields:
      Each text with the tags of its words, in their order.

    Raises:
      UserError: ``batch_size`` is below 1.
    """
    names, longest = model.description.labels, model.description.max_length

    def make_rows(block: Sequence[Words]) -> TagWindows:
        sentences = [Sentence(text.words, (OUTSIDE,) * len(text.spans)) for text in block]
        return make_tag_windows(sentences, names, model.tokenizer, max_length=longest)

    blocks = apply_to_stream(
        functools.partial(_labels, model.model, model.params, longest),
        texts,
        make_rows,
        max_length=longest,
        batch_size=batch_size,
        mesh=model.mesh,
    )
    for block, windows, labels in blocks:
        yield from zip(block, windows.tags(list(labels), names), strict=True)


def entities_of(text: Words, tags: Sequence[str], labels: Sequence[str]) -> list[Entity]:
    """The entities that tags make, as they are counted in scores.

    Where the model's labels are no tags of entities, as parts of speech are not, each word is one,
    of the type that its tag is.
    """
    if all(map(is_entity_tag, labels)):
        pieces = get_entities(list(tags))
    else:
        # A word of which nothing is left once it is normalised has no tag of the model's.
        pieces = [(tag, word, word) for word, tag in enumerate(tags) if tag in labels]
    found = []
    for kind, first, last in pieces:
        start, end = text.spans[first][0], text.spans[last][1]
        found.append(Entity(kind, text.text[start:end], start, end))
    return found


def _reader(arguments: argparse.Namespace) -> Reader:
    def row(values: Mapping[str, Any], place: str) -> Fields:
        found = values.get(arguments.text)
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return {"words": Words.of_list(found)}
        return {"words": Words.of_text(text_column(values, arguments.text, place, "--text"))}

    return Reader(lambda line, place: {"words": Words.of_text(line)}, row)


def _shown(text: Words, tags: list[str], labels: Sequence[str]) -> Answer:
    entities = entities_of(text, tags, labels)
    record = {
        "text": text.text,
        "words": text.words,
        "prediction": tags,
        "entities": [entity._asdict() for entity in entities],
    }
    width = max((len(entity.type) for entity in entities), default=0)
    lines = [f"  {entity.type:{width}}  {entity.text}" for entity in entities]
    return Answer(record, "\n".join([text.text, *lines]))


def _run(model: Pretrained, arguments: argparse.Namespace) -> None:
    texts = (fields["words"] for _, fields in read_examples(arguments, _reader(arguments)))
    tagged = tag_stream(model, texts, batch_size=arguments.batch_size)
    labels = model.description.labels
    write_answers(
        (_shown(text, tags, labels) for text, tags in tagged),
        arguments.output,
        as_json=arguments.json,
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_batch_flag(parser)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; a table may have lists of words instead"
    )


TAG = Command(
    "tag", "the entities of a text, or the tags of its words", (Head.TAGGING,), _add_flags, _run
)
