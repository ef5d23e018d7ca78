"""Pretrains BERT from random weights: masked-language modelling and next sentences.

    python -m bert_jax.train --config configs/pretrain.py:base,corpus=data/mine --workdir runs/base

The argument is a size and any keys of the config: ``SIZE[,KEY=VALUE...]``. A size is one of tiny,
mini, small, medium, base, large, or a miniature by its numbers, such as ``L6_H512``. ``corpus`` is
a directory that ``python -m bert_jax.prepare`` made, a mixture such as
``data/wiki:0.7+data/books:0.3``, or ``docs``, the documentation that is on every machine.

Cost: the step of ``mini`` at length 128 and batch 32 takes about 1.2 seconds on two cores of an AMD
EPYC (``benchmarks/train_step.py``); what fits on an accelerator is in the README. What to expect of
a full run (a million steps of batch 256) is Devlin et al.'s result; it has not been repeated here
yet. For a measured result in minutes, see ``demo.py``.
"""

import ml_collections

from bert_jax.config_file import override_from_argument
from bert_jax.models.config import size_shape

# The published runs used 1e-4 for base and large; smaller models learn faster with more.
_LEARNING_RATES = {"base": 1e-4, "large": 1e-4}
_SMALL_LEARNING_RATE = 5e-4


def get_config(argument: str = "tiny") -> ml_collections.ConfigDict:
    """BERT's recipe (Devlin et al., 2019, section A.2) for a size, with keys set on top."""
    size, _, settings = argument.partition(",")
    config = ml_collections.ConfigDict()
    config.task = "pretraining"
    config.seed = 0
    config.total_steps = 1_000_000
    config.batch_size = 256  # global: all devices together
    config.accumulation_steps = 1  # microbatches per update; divides the batch of a device
    config.init_from = ""  # a workdir or a Hugging Face directory to start from
    config.corpus = "docs"

    config.log_every_steps = 100
    config.evaluate_every_steps = 10_000  # 0: only at the end
    config.checkpoint_every_steps = 1_000
    config.checkpoints = ml_collections.ConfigDict({"keep_last": 2, "keep_best": True})
    config.early_stopping_evaluations = 0  # without a better score, then stop; 0: never
    config.evaluation = ml_collections.ConfigDict({"examples": 8192})  # 0: the whole split

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.loader_workers = 0  # processes that make batches; 0: a thread of the run's own

    config.model = ml_collections.ConfigDict(
        {
            **size_shape(size),  # layers and widths; and for speed only, unroll
            "max_positions": 512,
            "initializer_stddev": 0.02,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "compute_dtype": "float32",
            # Kernels: splash (TPU) or cudnn (GPU), which cannot drop, or triton (GPU), which can.
            "attention": "xla",
            "residual_norm": "xla",  # or triton (GPU): a block's dropout, sum and LayerNorm in one
            "gelu": "xla",  # or triton (GPU): with the bias before it
            "remat": "auto",  # or none, dots, offload, full: the last computes most, to keep least
            # The decoder in so many parts: less memory, a third more of its time. None: 1, or under
            # mesh.fsdp as many as make each no larger than a layer.
            "vocabulary_chunks": None,
        }
    )

    config.data = ml_collections.ConfigDict(
        {
            "max_length": 128,
            "objective": "nsp",  # or sop (sentence order), or none (one segment, full length)
            "short_sequence_share": 0.1,
            "random_next_share": 0.5,
            # More than 1: so many short sequences may share a row (packing).
            "sequences_per_row": 1,
            "masking": {
                "unit": "token",  # or word, or span
                "share": 0.15,
                "mask_share": 0.8,
                "random_share": 0.1,
                "span_probability": 0.2,
                "max_span_words": 10,
            },
        }
    )
    # BERT's own schedule was share=0.1: the last tenth at length 512.
    config.second_phase = ml_collections.ConfigDict(
        {"share": 0.0, "max_length": 512, "batch_size": 0}  # batch_size 0: that of the first phase
    )
    # What the built-in corpus is prepared with.
    config.docs = ml_collections.ConfigDict({"vocabulary_size": 8192, "lowercase": True})

    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",  # or lamb, or adafactor
            "learning_rate": _LEARNING_RATES.get(size, _SMALL_LEARNING_RATE),
            "schedule": "linear",  # or cosine, or warmup_stable_decay
            "warmup_steps": None,  # if given, instead of the share of all steps
            "warmup_share": 0.01,
            "decay_share": 0.1,
            "final_learning_rate_share": 0.0,
            "weight_decay": 0.01,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-6,
            "bias_correction": False,
            "first_moment_dtype": "float32",  # or bfloat16, in half the bytes
            "clip_norm": 1.0,  # 0: no clipping
        }
    )
    override_from_argument(config, settings)
    return config
