"""What the fine-tuning recipes share. It is no recipe by itself: see ``glue.py``, ``classify.py``.

Values follow the BERT paper (Devlin et al., 2019, appendix A.3).
"""

import ml_collections

from bert_jax.config_file import override_from_argument


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The settings of every fine-tuning task; the argument sets keys: ``KEY=VALUE,...``."""
    config = ml_collections.ConfigDict()
    config.task = "classification"
    config.seed = 0
    # A run or a Hugging Face directory whose encoder to start from.
    config.init_from = ""
    # For an encoder with random weights: mini, base, L6_H512...; and a vocab.txt, a tokenizer.json
    # or a corpus.
    config.size = ""
    config.vocabulary = ""

    config.epochs = 3.0
    config.total_steps = 0  # 0: as many as the epochs take
    config.batch_size = 32  # global: all devices together
    config.accumulation_steps = 1  # microbatches per update; divides the batch of a device

    config.log_every_steps = 50
    config.evaluate_every_steps = 0  # 0: only at the end
    config.checkpoint_every_steps = 1_000
    config.checkpoints = ml_collections.ConfigDict({"keep_last": 1, "keep_best": True})
    config.early_stopping_evaluations = 0  # without a better score, then stop; 0: never
    config.selection = "accuracy"  # the metric that says which checkpoint is best

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.loader_workers = 0  # processes that make batches; 0: a thread of the run's own

    # None: as in the encoder that the run starts from.
    config.model = ml_collections.ConfigDict(
        {
            "layers": None,
            "width": None,
            "heads": None,
            "feed_forward_width": None,
            "max_positions": None,
            "initializer_stddev": None,
            "hidden_dropout": None,
            "attention_dropout": None,
            "compute_dtype": None,
            "unroll": None,
            # Kernels: splash (TPU) or cudnn (GPU), which cannot drop, or triton (GPU), which can.
            "attention": "xla",
            "residual_norm": "xla",  # or triton (GPU): a block's dropout, sum and LayerNorm in one
            "gelu": "xla",  # or triton (GPU): with the bias before it
            "remat": "auto",  # or none, dots, offload, full: the last computes most, to keep least
            # LoRA and adapters leave the encoder as it is: lora_rank=8, or adapter_width=64.
            "lora_rank": None,
            "lora_alpha": None,
            "lora_targets": None,
            "adapter_width": None,
        }
    )
    config.freeze = ml_collections.ConfigDict({"embeddings": False, "layers": 0, "encoder": False})
    config.reinitialise_layers = 0  # of the top, and with them the pooler
    config.data = ml_collections.ConfigDict({"max_length": 128})
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 3e-5,
            "schedule": "linear",
            "warmup_steps": None,
            "warmup_share": 0.1,
            "decay_share": 0.1,
            "final_learning_rate_share": 0.0,
            "weight_decay": 0.01,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-6,
            # Few steps and little warm-up: without it, fine-tuning is unstable (Mosbach et al.,
            # arXiv:2006.04884).
            "bias_correction": True,
            "first_moment_dtype": "float32",  # or bfloat16, in half the bytes
            "clip_norm": 1.0,
            "layer_decay": 1.0,  # 0.95: each layer learns a twentieth slower than the one above
            "lora_plus_ratio": 1.0,  # of the learning rate of LoRA's B to all others'; 16, say
        }
    )
    override_from_argument(config, argument)
    return config
