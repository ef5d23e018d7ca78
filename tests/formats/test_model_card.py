"""The model card says what was run and how to load it."""

import pytest

from bert_jax.formats.model_card import model_card
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.training.checkpoints import RunRecord

CONFIG = BertConfig(
    vocabulary_size=1234, layers=2, width=32, heads=2, feed_forward_width=64, max_positions=16
)
RECORD = RunRecord(
    step=20_000,
    config={"task": "pretraining", "corpus": "data/mine", "batch_size": 64, "seed": 3},
    identity={"fingerprint": "abc123"},
    assets={},
    environment={"jax": "0.10.2", "python": "3.11", "commit": "0123456789ab"},
    notes=["changed at step 100: usable cores 2 -> 8"],
)


def test_a_run_s_card() -> None:
    description = ModelDescription(CONFIG, Head.PRETRAINING, pooler=False, max_length=16)
    card = model_card(
        "mine",
        description,
        56_789,
        record=RECORD,
        scored_at=19_000,
        scores={"mlm_loss": 2.5, "mlm_accuracy": 0.51},
    )
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    for line in (
        "# mine",
        'model = pipeline("fill-mask", model="PATH")',
        "| task | pretraining |",
        "| corpus | data/mine |",
        "| batch_size | 64 |",
        "| steps | 20,000 |",
        "| data: fingerprint | abc123 |",
        "| commit | 0123456789ab |",
        "On the validation split, at step 19,000:",
        "| mlm_loss | 2.5000 |",
        "| mlm_accuracy | 0.5100 |",
        "changed at step 100: usable cores 2 -> 8",
        '  "seed": 3',
    ):
        assert f"\n{line}" in card, line
    assert "56,789 parameters" in card
    assert "1,234 tokens" in card
    assert "\n\n\n" not in card


@pytest.mark.parametrize(
    "head, loading",
    [
        (Head.PRETRAINING, 'BertForPreTraining.from_pretrained("PATH")'),
        (Head.CHOICE, 'BertForMultipleChoice.from_pretrained("PATH")'),
        (Head.QUESTION_ANSWERING, 'BertForQuestionAnswering.from_pretrained("PATH")'),
        (Head.TAGGING, 'pipeline("token-classification", model="PATH")'),
        (Head.NONE, 'pipeline("feature-extraction", model="PATH")'),
    ],
)
def test_every_model_says_how_it_is_loaded(head: Head, loading: str) -> None:
    card = model_card("mine", ModelDescription(CONFIG, head, ("a", "b")), 5)
    assert loading in card
    assert "Labels: a, b." in card
    assert "How it was made" not in card
    assert "add_pooling_layer" not in card


def test_embeddings_have_a_card_of_their_own() -> None:
    description = ModelDescription(CONFIG, Head.NONE, pooler=False)
    card = model_card("mine", description, 5, for_sentences=True)
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert 'SentenceTransformer("PATH").encode' in card
    card = model_card("mine", description, 5)
    assert 'BertModel.from_pretrained("PATH", add_pooling_layer=False)' in card
    assert "pipeline(" not in card
