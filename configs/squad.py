"""Fine-tunes a model that answers questions about a text, on SQuAD or questions of your own.

    python -m bert_jax.train --config configs/squad.py:v2 --workdir runs/squad \
        --config.init_from=runs/base

The argument is ``v1`` (each question has an answer; Rajpurkar et al., arXiv:1606.05250) or ``v2``
(some have none; arXiv:1806.03822), and then ``,KEY=VALUE...``. The data are TFDS's ``squad`` unless
files are named instead, in SQuAD's own JSON or as JSON lines::

    --config.data.tfds= --config.data.train=train-v2.0.json --config.data.validation=dev-v2.0.json

Exact match and F1 are those of the official scripts, in percent. With ``v2``, "no answer" is said
where it beats the best span by more than ``answers.no_answer_threshold``. An evaluation also gives
the threshold that would have been best, and the F1 with it: ``best_f1_threshold``, ``best_f1``.

The result on all of SQuAD has not been measured.
"""

from pathlib import Path

import ml_collections

from bert_jax.config_file import load_config, override_from_argument
from bert_jax.errors import UserError

# TFDS's names; learning rates and epochs are those of BERT's paper (sections 4.2 and 4.3), which
# has batches of 48 for v2.
_VERSIONS = {
    "v1": {"tfds": "squad/v1.1", "learning_rate": 5e-5, "epochs": 3.0, "batch_size": 32},
    "v2": {"tfds": "squad/v2.0", "learning_rate": 5e-5, "epochs": 2.0, "batch_size": 48},
}


def get_config(argument: str) -> ml_collections.ConfigDict:
    """The recipe of a version, with keys set on top."""
    version, _, settings = argument.partition(",")
    if version not in _VERSIONS:
        raise UserError(f"SQuAD has no version {version!r}; choose v1 or v2")
    chosen = _VERSIONS[version]
    config = load_config(str(Path(__file__).with_name("fine_tune.py")))
    config.task = "question_answering"
    config.selection = "f1"  # or exact_match, best_f1, loss...
    config.epochs = chosen["epochs"]
    config.batch_size = chosen["batch_size"]
    config.optimizer.learning_rate = chosen["learning_rate"]
    config.data.max_length = 384
    config.data.update(
        {
            "tfds": chosen["tfds"],  # train, validation and test are splits of it; "": files
            "data_dir": "",  # where TFDS keeps its data, if not in its own place
            # Files: .json (SQuAD's) or .jsonl, compressed (.gz, .xz, .zst) or not; several with
            # commas.
            "train": "train",
            "validation": "validation",
            "test": "",
            # Of the training articles, where no validation file is given.
            "validation_share": 0.0,
            "stride": 128,  # tokens from the start of a window to that of the next
            "max_question_length": 64,  # tokens; longer questions are cut
            "can_be_impossible": version == "v2",  # whether a question may have no answer
        }
    )
    config.answers = ml_collections.ConfigDict(
        {
            "max_answer_length": 30,  # tokens
            "candidates": 20,  # answers to give for each question
            "no_answer_threshold": 0.0,
        }
    )
    override_from_argument(config, settings)
    return config
