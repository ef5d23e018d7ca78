"""The tokenizer: ids equal those of BERT's reference tokenizer, training is deterministic."""

import json
import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from bert_jax.errors import UserError

# Pangrams and common words of scripts and languages with different rules.
MULTILINGUAL = [
    "The quick brown fox jumps over the lazy dog; isn't it 3.14 or 1,000?",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "Dès Noël où un zéphyr haï me vêt de glaçons würmiens, je dîne d'exquis rôtis.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul ışık.",
    "我能吞下玻璃而不伤身体。今天天气很好！",
    "いろはにほへと ちりぬるを カタカナ 東京",
    "키스의 고유조건은 입술끼리 만나야 하고",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "emoji 😀👍🏽, symbols €$£+=<>|~^`, quotes “like” ‘these’ — and dashes–here…",
]


@pytest.fixture(scope="module", params=["uncased", "cased"])
def pair(request, tmp_path_factory):
    """(ours, the reference) with one vocabulary."""
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    lowercase = request.param == "uncased"
    ours = WordPieceTokenizer.train(MULTILINGUAL * 3, size=1500, lowercase=lowercase)
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in ours.vocabulary), encoding="utf-8")
    reference = legacy.BertTokenizerLegacy(str(path), do_lower_case=lowercase)
    return WordPieceTokenizer.from_file(path, lowercase=lowercase), reference


def reference_ids(reference, text):
    return reference.convert_tokens_to_ids(reference.tokenize(text))


def test_ids_equal_the_reference_on_many_languages(pair):
    ours, reference = pair
    for text, ids in zip(MULTILINGUAL, ours.encode_batch(MULTILINGUAL), strict=True):
        assert ids == reference_ids(reference, text), text
        assert ours.unknown_id not in ids or "😀" in text, text


CHARACTERS = st.sampled_from(sorted(set("".join(MULTILINGUAL)) | set("\t\n\r\u00a0\u200b\ufeff")))


@settings(max_examples=300)
@given(st.text(CHARACTERS, max_size=80))
@example("\u0e48\u094d")  # two marks whose order composition changes
def test_ids_equal_the_reference_on_random_text(pair, text):
    ours, reference = pair
    # transformers composes first (NFC), which google-research/bert and its own fast tokenizer do
    # not; without accents it is all the same, and of composed text too.
    if not ours.lowercase:
        text = unicodedata.normalize("NFC", text)
    assert ours.encode_batch([text])[0] == reference_ids(reference, text)


@settings(max_examples=300)
@given(texts=st.lists(st.text(CHARACTERS | st.sampled_from(" \x1c\x85\u2028[]"), max_size=40)))
def test_the_fast_path_gives_the_same_ids(pair, texts):
    ours, _ = pair
    token_ids, lengths = ours.encode_flat(texts)
    assert (token_ids.dtype, lengths.dtype) == (np.int32, np.int64)
    expected = ours.encode_batch(texts)
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert token_ids.tolist() == [i for ids in expected for i in ids]


@settings(max_examples=200)
@given(words=st.lists(st.text(CHARACTERS | st.sampled_from(" \x1c\x85[]"), max_size=12)))
def test_words_are_tokenised_one_by_one(pair, words):
    ours, _ = pair
    token_ids, lengths = ours.encode_words(iter(words + words))
    assert (token_ids.dtype, lengths.dtype) == (np.int32, np.int64)
    expected = ours.encode_batch(words + words)
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert token_ids.tolist() == [i for ids in expected for i in ids]


@settings(max_examples=300)
@given(texts=st.lists(st.text(CHARACTERS | st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_characters_of_tokens(pair, texts):
    ours, _ = pair
    tokenized = ours.encode_with_characters(texts)
    assert tokenized.token_ids.dtype == np.int32
    for number, ids in enumerate(ours.encode_batch(texts)):
        mine = slice(*tokenized.offsets[number : number + 2])
        assert tokenized.token_ids[mine].tolist() == ids
        starts, ends = tokenized.character_starts[mine], tokenized.character_ends[mine]
        assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
        assert (starts < ends).all() and (ends <= len(texts[number])).all()


def test_characters_count_in_the_text_as_it_was_given(pair):
    ours, _ = pair
    text = "\u0000 Gru\u0308\u0323ße,\u200b 😀 İstanbul 我能 jé\u0301"
    tokenized = ours.encode_with_characters(["other", text])
    mine = slice(*tokenized.offsets[1:])
    words: list[str] = []
    for token, start, end in zip(
        tokenized.token_ids[mine],
        tokenized.character_starts[mine],
        tokenized.character_ends[mine],
        strict=True,
    ):
        words += [""] * (not ours.is_continuation[token])
        words[-1] += text[start:end]
    assert words == ["Gru\u0308\u0323ße", ",", "😀", "İstanbul", "我", "能", "jé\u0301"]


def test_words_too_long_are_unknown_as_in_the_reference(pair):
    ours, reference = pair
    for length in (99, 100, 101, 250):
        text = "fox " + "a" * length
        assert ours.encode_batch([text])[0] == reference_ids(reference, text)


def test_chinese_characters_are_words(pair):
    ours, _ = pair
    tokens = [ours.vocabulary[i] for i in ours.encode_batch(["我能吞下"])[0]]
    assert tokens == ["我", "能", "吞", "下"]


def test_special_tokens_in_raw_text_are_ordinary_characters(pair):
    ours, _ = pair
    ids = ours.encode_batch(["the [MASK] and [SEP] of [PAD]"])[0]
    assert not set(ids) & {ours.mask_id, ours.sep_id, ours.pad_id}


def test_masks_in_a_prompt_are_masks(pair):
    ours, _ = pair
    ids = ours.encode_with_masks("the quick [MASK] fox")
    assert ids.count(ours.mask_id) == 1
    assert ours.decode(ids).split()[2] == "[MASK]"
    without = [i for i in ids if i != ours.mask_id]
    assert without == ours.encode_batch(["the quick fox"])[0]


def test_attributes(pair):
    ours, _ = pair
    assert [ours.vocabulary[i] for i in (ours.pad_id, ours.cls_id)] == ["[PAD]", "[CLS]"]
    assert {ours.vocabulary[i] for i in ours.special_ids} == set(SPECIAL_TOKENS)
    assert ours.size == len(ours.vocabulary) <= 1500
    expected = [token.startswith("##") for token in ours.vocabulary]
    np.testing.assert_array_equal(ours.is_continuation, expected)
    assert ours.id_of("fox") not in ours.special_ids
    assert ours.id_of("no such token") == ours.unknown_id


def test_json_and_pickle_keep_everything(pair):
    ours, _ = pair
    for copy in (WordPieceTokenizer.from_json(ours.to_json()), pickle.loads(pickle.dumps(ours))):
        assert copy.hash == ours.hash
        assert copy.to_json() == ours.to_json()
        assert copy.encode_batch(MULTILINGUAL) == ours.encode_batch(MULTILINGUAL)


def test_the_hash_depends_on_tokens_their_order_and_case():
    tokens = [*SPECIAL_TOKENS, "a", "b"]
    hashes = {
        WordPieceTokenizer(tokens, lowercase=True).hash,
        WordPieceTokenizer(tokens, lowercase=False).hash,
        WordPieceTokenizer([*SPECIAL_TOKENS, "b", "a"], lowercase=True).hash,
        WordPieceTokenizer([*tokens, "c"], lowercase=True).hash,
    }
    assert len(hashes) == 4


def test_training_gives_the_same_vocabulary_in_every_process():
    program = (
        "import sys, json; from bert_jax.data.tokenizer import WordPieceTokenizer as T; "
        "print(T.train(json.load(sys.stdin), size=600, lowercase=True).hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(MULTILINGUAL * 2),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(3)
    }
    assert len(hashes) == 1


def test_training_fills_the_vocabulary_with_frequent_words():
    tokenizer = WordPieceTokenizer.train(["the cat sat on the mat"] * 5, size=60, lowercase=True)
    assert {"the", "cat", "a", "##a"} <= set(tokenizer.vocabulary)
    assert len(WordPieceTokenizer.train(MULTILINGUAL, size=400, lowercase=True).vocabulary) == 400


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_a_missing_special_token_is_named(tmp_path, missing):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(token for token in [*SPECIAL_TOKENS, "a"] if token != missing))
    with pytest.raises(UserError) as caught:
        WordPieceTokenizer.from_file(path)
    assert missing in str(caught.value)
    assert str(path) in str(caught.value)


def test_case_is_inferred_from_a_vocab_txt(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, "paris", "##s"]))
    assert WordPieceTokenizer.from_file(path).lowercase
    for capitalised in ("Paris", "Москва", "Ёлка"):
        path.write_text("\n".join([*SPECIAL_TOKENS, capitalised, "##s"]))
        assert not WordPieceTokenizer.from_file(path).lowercase
    assert WordPieceTokenizer.from_file(path, lowercase=True).lowercase


def test_only_newlines_separate_tokens(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL_TOKENS, "a\u2028b", "c"]).encode())
    assert WordPieceTokenizer.from_file(path).vocabulary[-2:] == ("a\u2028b", "c")


def test_files_that_are_no_vocabulary(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match=r"not the tokenizer\.json of a BERT"):
        WordPieceTokenizer.from_file(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"not the tokenizer\.json of a BERT"):
        WordPieceTokenizer.from_file(path)
    right = WordPieceTokenizer([*SPECIAL_TOKENS, "a"], lowercase=True).to_json()
    for before, after in (
        ('"handle_chinese_chars":true', '"handle_chinese_chars":false'),
        ('"clean_text":true', '"clean_text":false'),
        ('"max_input_chars_per_word":100', '"max_input_chars_per_word":50'),
    ):
        assert before in right
        path.write_text(right.replace(before, after))
        with pytest.raises(UserError, match=r"not the tokenizer\.json of a BERT"):
            WordPieceTokenizer.from_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        WordPieceTokenizer.from_file(tmp_path / "missing.txt")
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 6\)"):
        WordPieceTokenizer.from_file(path)
    path.write_text("\n".join([*SPECIAL_TOKENS, "a", "a"]))
    with pytest.raises(UserError, match="'a' twice"):
        WordPieceTokenizer.from_file(path)


def test_a_tokenizer_json_contradicted_by_an_option(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(WordPieceTokenizer([*SPECIAL_TOKENS, "a"], lowercase=True).to_json())
    assert WordPieceTokenizer.from_file(path).lowercase
    with pytest.raises(UserError, match="is uncased, which contradicts --cased"):
        WordPieceTokenizer.from_file(path, lowercase=False)


@pytest.mark.parametrize(("texts", "size"), [([], 100), (["\n", " "], 100), (["text"], 6)])
def test_training_needs_text_and_room(texts, size):
    with pytest.raises(UserError, match=r"no text|no room"):
        WordPieceTokenizer.train(texts, size=size, lowercase=True)
