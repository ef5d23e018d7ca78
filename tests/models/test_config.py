import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from bert_jax.errors import UserError
from bert_jax.models.config import (
    SIZES,
    BertConfig,
    check_platform,
    count_parameters,
    sized_config,
)
from bert_jax.models.heads import PretrainingModel


def test_base_has_the_published_number_of_parameters() -> None:
    assert count_parameters(sized_config("base", 30522)) == 110_106_428


@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("vocabulary_size", [384, 300])
def test_count_equals_the_models_leaves_without_vocabulary_padding(
    vocabulary_size: int, next_sentence: bool
) -> None:
    config = sized_config("tiny", vocabulary_size)
    model = PretrainingModel(config, next_sentence=next_sentence)
    tokens, one = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(
        lambda key: model.init(key, tokens, tokens, one[0], one, deterministic=True),
        jax.random.key(0),
    )
    stored = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
    padding = (384 - vocabulary_size) * (config.width + 1)
    assert count_parameters(config, next_sentence) == stored - padding


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes(size: str) -> None:
    layers, width = SIZES[size]
    config = sized_config(size, 1000)
    assert config == sized_config(f"L{layers}_H{width}", 1000)
    assert (config.layers, config.width, config.heads) == (layers, width, width // 64)
    assert (config.head_width, config.feed_forward_width) == (64, 4 * width)


def test_settings_override_the_size() -> None:
    config = sized_config("tiny", 1000, hidden_dropout=0.0, heads=4, max_positions=64)
    assert (config.hidden_dropout, config.head_width, config.max_positions) == (0.0, 32, 64)


@pytest.mark.parametrize(("size", "padded"), [(1, 128), (128, 128), (129, 256), (30522, 30592)])
def test_vocabulary_padding(size: int, padded: int) -> None:
    assert sized_config("tiny", size).padded_vocabulary_size == padded


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("bse", "did you mean 'base'"),
        ("BERT-Large", "did you mean 'large'"),
        ("L4_H100", "'L4_H100' has width 100.* width such as 128"),
        ("L4_H0", "width such as 64"),
        ("L0_H128", "layers is 0"),
    ],
)
def test_unusable_sizes(size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sized_config(size, 1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "width 128 does not divide into 3 heads"),
        ({"vocabulary_size": 0}, "vocabulary_size is 0"),
        ({"lora_rank": 10.5}, "lora_rank is 10.5; give a whole number"),
        ({"hidden_dropout": (0, 1)}, r"hidden_dropout is \(0, 1\); give a number"),
        ({"hidden_dropout": "abc"}, "hidden_dropout is 'abc'; give a number"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"compute_dtype": "float16"}, "compute_dtype is 'float16'"),
        ({"attention": "flash"}, "attention is 'flash'; choose one of xla, splash, cudnn, triton"),
        ({"attention": "splash"}, "attention_dropout is 0.1; set it to 0"),
        ({"attention": "cudnn", "attention_dropout": 0.0}, "compute_dtype is 'float32'; set it"),
        (
            {
                "attention": "cudnn",
                "attention_dropout": 0.0,
                "compute_dtype": "bfloat16",
                "heads": 32,
            },
            "multiple of 8 up to 128, and they are 4 wide",
        ),
        ({"attention": "triton"}, "compute_dtype is 'float32'; set it"),
        (
            {"attention": "triton", "compute_dtype": "bfloat16", "heads": 16},
            "16, 32, 64 or 128, and they are 8 wide",
        ),
        ({"residual_norm": "cuda"}, "residual_norm is 'cuda'; choose one of xla, triton"),
        ({"gelu": "tanh"}, "gelu is 'tanh'; choose one of xla, triton"),
        ({"vocabulary_chunks": 0}, "vocabulary_chunks is 0"),
        ({"vocabulary_chunks": 3}, "does not divide the 1024 rows of the word table; choose a p"),
        ({"remat": "all"}, "remat is 'all'; choose one of auto, none, dots, offload, full"),
    ],
)
def test_unusable_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(sized_config("tiny", 1000), **settings)


@pytest.mark.parametrize(
    ("field", "kernel", "platform"),
    [
        ("attention", "splash", "cpu"),
        ("attention", "splash", "gpu"),
        ("attention", "cudnn", "tpu"),
        ("residual_norm", "triton", "cpu"),
        ("gelu", "triton", "tpu"),
    ],
)
def test_a_kernel_is_refused_where_it_cannot_run(field: str, kernel: str, platform: str) -> None:
    message = (
        f"model.{field}={kernel} runs on a .*platform '{platform}'; set --config.model.{field}"
    )
    with pytest.raises(UserError, match=message):
        check_platform(field, kernel, platform)


@pytest.mark.parametrize(
    ("kernel", "platform"), [("splash", "tpu"), ("cudnn", "gpu"), ("triton", "gpu"), ("xla", "cpu")]
)
def test_a_kernel_is_taken_where_it_runs(kernel: str, platform: str) -> None:
    check_platform("attention", kernel, platform)


@pytest.mark.parametrize(("size", "chunks"), [("tiny", 32), ("base", 4), ("large", 4)])
def test_chunks_of_the_word_table_are_no_larger_than_a_layer(size: str, chunks: int) -> None:
    config = sized_config(size, 30522)
    assert config.layer_sized_chunks == chunks
    layer = 12 * config.width**2
    assert 30592 * config.width / chunks <= layer < 30592 * config.width / (chunks / 2)


def test_config_can_be_compared_and_hashed() -> None:
    assert len({sized_config("tiny", 1000), sized_config("tiny", 1000)}) == 1
    assert isinstance(sized_config("tiny", 1000), BertConfig)
