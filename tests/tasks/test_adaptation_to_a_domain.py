"""Pretraining goes on from a model that is there, on its vocabulary or on an extended one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_evaluation import compiled_sums

from bert_jax import prepare
from bert_jax.config_file import load_config
from bert_jax.data.corpus import open_corpus
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.models.config import BertConfig
from bert_jax.models.description import Head, ModelDescription
from bert_jax.pretrained import load
from bert_jax.tasks.base import Start
from bert_jax.tasks.registry import load_task
from bert_jax.training.assets import model_assets
from bert_jax.training.checkpoints import Checkpoints, RunRecord
from bert_jax.training.sharding import unbox
from bert_jax.training.state import TrainState
from bert_jax.training.transplant import transplant

NEW_WORDS = 150  # more than the padding has room for


@pytest.fixture(scope="module")
def origin(corpus_directory, tmp_path_factory):
    """A run that begins with random weights, of half the corpus's vocabulary, so to speak."""
    directory = tmp_path_factory.mktemp("origin")
    whole = open_corpus(corpus_directory).tokenizer
    tokenizer = WordPieceTokenizer(whole.vocabulary[:600], lowercase=True)
    config = BertConfig(600, 2, 32, 2, 64, max_positions=64, hidden_dropout=0.3)
    description = ModelDescription(config, Head.PRETRAINING, pooler=True)
    params = jax.jit(lambda key: unbox(description.initialise(key)))(jax.random.key(0))
    bias = params["mlm_head"]["bias"]
    params["mlm_head"]["bias"] = bias.at[:600].set(jnp.linspace(-1, 1, 600))
    assets = model_assets(description, tokenizer)
    record = RunRecord(0, {"task": "pretraining"}, {}, assets, {}, [])
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(TrainState(jnp.asarray(0), params, None), record)
    return directory


@pytest.fixture(scope="module")
def corpora(origin, text_directory, tmp_path_factory):
    """The text on the origin's vocabulary, and on the extended one."""
    directory = tmp_path_factory.mktemp("corpora")
    for name, words in (("same", 0), ("extended", NEW_WORDS)):
        prepare.main(
            [
                *("--input", str(text_directory), "--output", str(directory / name)),
                *("--vocabulary", str(origin), "--extend_vocabulary", str(words)),
                *("--max_length", "64", "--workers", "0", "--validation_share", "0.15"),
            ]
        )
    return directory


def start_task(corpus, origin, **settings):
    config = load_config(f"configs/adapt.py:corpus={corpus},data.max_length=32,batch_size=16")
    config.update(settings)
    model = load(origin)
    return load_task(config, Start(model.assets)), model


def taken_over(task, params):
    shapes = jax.eval_shape(lambda: unbox(task.initialise(jax.random.key(1))))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return transplant(fresh, task.adopt(params), "origin")


def logits(of, params, batch):
    inputs = ("token_ids", "segment_ids", "lengths", "masked_positions")
    apply = jax.jit(lambda *arrays: of.model.apply({"params": params}, *arrays, deterministic=True))
    return np.asarray(apply(*(batch[name] for name in inputs))[0])


def test_the_model_comes_with_the_start(corpora, origin):
    task, model = start_task(corpora / "same", origin)
    assert task.description.config == model.config
    assert not task.description.pooler
    assert task.config.model.layers == 2 and task.config.model.hidden_dropout == 0.3
    # Three epochs of the text, rounded to whole steps.
    rows = sum(task._training_streams[0].epoch_sizes())
    assert task.config.total_steps == round(3 * rows / 16)
    assert task.data_metrics(task.config.total_steps)["data/epochs"] == pytest.approx(3, rel=0.05)
    # A run that goes on needs the start no more.
    again = load_task(task.config, Start(task.assets(), task.identity()))
    assert again.description == task.description


def test_on_the_same_vocabulary_nothing_is_lost(corpora, origin):
    task, model = start_task(corpora / "same", origin)
    params, notes = taken_over(task, model.params)
    assert notes == ["in origin and not used: next_sentence_head, pooler"]
    for name in ("encoder", "mlm_head"):
        jax.tree.map(np.testing.assert_array_equal, params[name], model.params[name])
    batch = task.validation_batch(task.phases[0], 0, 8, slice(0, 8))
    sums = compiled_sums(task)(params, batch)
    loss = float(sums["mlm_loss"].mean)
    log_probabilities = jax.nn.log_softmax(logits(model, model.params, batch))
    chosen = np.take_along_axis(log_probabilities, batch["masked_labels"][..., None], -1)[..., 0]
    weights = batch["masked_weights"]
    assert loss == pytest.approx(float(-(chosen * weights).sum() / weights.sum()), rel=1e-5)


def test_new_words_begin_as_the_mean_of_their_pieces(corpora, origin, capsys):
    task, model = start_task(corpora / "extended", origin)
    old, new = model.tokenizer, task.tokenizer
    metadata = open_corpus(corpora / "extended").metadata
    assert metadata["new_words"] == new.size - old.size == NEW_WORDS
    assert new.vocabulary[: old.size] == old.vocabulary
    params, _ = taken_over(task, model.params)
    table, theirs = params["encoder"]["embeddings"]["word"], model.params["encoder"]["embeddings"]
    bias, their_bias = params["mlm_head"]["bias"], model.params["mlm_head"]["bias"]
    assert len(table) == len(bias) == 768
    np.testing.assert_array_equal(table[: old.size], theirs["word"][: old.size])
    np.testing.assert_array_equal(bias[: old.size], their_bias[: old.size])
    for number in (old.size, old.size + 77, new.size - 1):
        pieces = np.array(old.encode_batch([new.vocabulary[number]])[0])
        assert len(pieces) > 1
        np.testing.assert_allclose(table[number], theirs["word"][pieces].mean(0), atol=1e-6)
        np.testing.assert_allclose(bias[number], their_bias[pieces].mean(), atol=1e-6)
    assert not np.any(table[new.size :]) and not np.any(bias[new.size :])

    # Where the text has none of the new words, the old ones score as before.
    same, _ = start_task(corpora / "same", origin)
    batch = same.validation_batch(same.phases[0], 0, 8, slice(0, 8))
    before = logits(same, taken_over(same, model.params)[0], batch)[..., : old.size]
    after = logits(task, params, batch)
    np.testing.assert_allclose(after[..., : old.size], before, rtol=1e-5, atol=1e-5)
    # And a new word scores as its pieces do on average.
    mean = before[..., np.array(old.encode_batch([new.vocabulary[old.size]])[0])].mean(-1)
    np.testing.assert_allclose(after[..., old.size], mean, rtol=1e-5, atol=1e-5)


def test_rows_without_a_token_are_dropped(corpora, origin):
    task, model = start_task(corpora / "extended", origin)
    word = model.params["encoder"]["embeddings"]["word"]
    model.params["encoder"]["embeddings"]["word"] = word.at[600:].set(1.0)
    params, _ = taken_over(task, model.params)
    table = params["encoder"]["embeddings"]["word"]
    assert not np.any(table[task.tokenizer.size :])
    assert not np.any(np.all(np.asarray(table) == 1.0, axis=1))


def test_a_model_without_the_head_gets_a_new_one(corpora, origin):
    task, model = start_task(corpora / "extended", origin)
    params, notes = taken_over(task, {"encoder": model.params["encoder"]})
    assert notes == ["not in origin, so initialised: mlm_head"]
    assert params["mlm_head"]["bias"].shape == (768,)


def test_other_vocabularies_are_refused(corpora, origin, corpus_directory):
    model = load(origin)
    config = load_config(f"configs/adapt.py:corpus={corpora / 'same'},data.max_length=32")
    other = WordPieceTokenizer(model.tokenizer.vocabulary[::-1], lowercase=True)
    cased = WordPieceTokenizer(model.tokenizer.vocabulary, lowercase=False)
    more = WordPieceTokenizer([*model.tokenizer.vocabulary, "[MORE]"], lowercase=True)
    for tokenizer in (other, cased, more):
        assets = model.assets | {"tokenizer.json": tokenizer.to_json()}
        with pytest.raises(UserError, match="another vocabulary than the corpus"):
            load_task(config, Start(assets))
    with pytest.raises(UserError, match="give --config.init_from=DIRECTORY"):
        load_task(config)


def test_prepare_says_how_to_go_on(origin, text_directory, tmp_path, capsys):
    model = str(origin)
    command = ("--input", str(text_directory), "--max_length", "64", "--workers", "0")
    extend = ("--vocabulary", model, "--extend_vocabulary", "7")
    prepare.main([*command, *extend, "--output", str(tmp_path / "c")])
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("7 new words, such as ") for line in printed)
    assert f"configs/adapt.py:corpus={tmp_path / 'c'}" in printed[-1]
    assert printed[-1].endswith(f"--config.init_from={model}")
    for more, message in (
        (["--extend_vocabulary", "3"], "--extend_vocabulary needs --vocabulary"),
        (["--extend_vocabulary", "-3", "--vocabulary", model], "no number of words"),
        (["--vocabulary", model, "--cased"], "is uncased; leave --cased out"),
        (["--vocabulary", str(text_directory)], "holds no model"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.main([*command, "--output", str(tmp_path / "d"), *more])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


@pytest.mark.slow
def test_an_adapted_run_is_fine_tuned(corpora, origin, tmp_path, run_program):
    adapted, tuned = tmp_path / "adapted", tmp_path / "tuned"
    config = f"configs/adapt.py:corpus={corpora / 'extended'},data.max_length=32,batch_size=16"
    done = run_program(
        *("train", "--config", config, "--workdir", str(adapted)),
        *(f"--config.init_from={origin}", "--config.total_steps=4"),
    )
    assert done.returncode == 0, done.stderr
    rows = [{"text": f"the list {word}", "label": word} for word in ("object", "value")] * 8
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_program(
        *("train", "--config", "configs/classify.py", "--workdir", str(tuned)),
        *(f"--config.init_from={adapted}", f"--config.data.train={tmp_path / 'rows.jsonl'}"),
        *("--config.total_steps=2", "--config.batch_size=8", "--config.data.max_length=32"),
    )
    assert done.returncode == 0, done.stderr
    model = load(tuned)
    assert model.tokenizer.hash == open_corpus(corpora / "extended").tokenizer.hash
    assert model.config.vocabulary_size == model.tokenizer.size
