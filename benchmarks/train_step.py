"""Times one pretraining step of BERT against PyTorch's in transformers, and a plain flax one.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --device gpu base:512:64,attention=cudnn,attention_dropout=0

A shape is SIZE:LENGTH:BATCH and any keys of the recipe's `model`, for ours, or of the recipe, with
their dots; rates of dropout are the same for all. Several shapes are measured one after the other.

One step is forward, backward, clipping and AdamW update with dropout on; in float32 on the CPU, in
bfloat16 (torch's autocast) on a GPU, or in the shape's `compute_dtype`. Ours is the step that
`bert_jax.train` runs, with its metrics; all get the same batches, which the pretraining task makes
from the built-in corpus (prepared on first use) or from --corpus.

    bert_jax                  as the shape says
    flax.linen, plain         BERT as one writes it with flax's own parts (`plain_flax.py`)
    transformers              BertForPreTraining, eagerly and through torch.compile, with SDPA
    transformers, masked only the same model, changed to decode only the masked positions

The contestants take turns within one process, so that a slow spell of the machine meets all of
them; the table gives medians. MFU is over real tokens, by `train_flops_per_token`, and the same for
all, so that it compares times.
"""

import argparse
import ast
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cpu_threads import use_cpu
from results import add_results_argument, keep

from bert_jax.command_line import run

PEERS = ("flax", "eager", "compiled", "masked-eager", "masked-compiled")
VOCABULARY_SIZE = 30522
PRETRAIN = Path(__file__).parents[1] / "configs" / "pretrain.py"
PLAIN = "flax.linen, plain"
OURS = "bert_jax"

Batch = dict[str, np.ndarray]
# Makes an update with each of some batches, and returns when the parameters are ready.
Turn = Callable[[Sequence[Batch]], None]


class Shape(NamedTuple):
    """What is measured: a size of BERT, the length of its rows, how many, and the recipe's keys."""

    text: str
    size: str
    length: int
    batch_size: int
    settings: dict[str, str]


def shape(text: str) -> Shape:
    """Reads `SIZE:LENGTH:BATCH[,KEY=VALUE...]`."""
    first, *settings = text.split(",")
    size, length, batch_size = first.split(":")
    return Shape(
        text, size, int(length), int(batch_size), dict(each.split("=") for each in settings)
    )


def peers(text: str) -> tuple[str, ...]:
    """Reads names of peers with commas between, or `none`."""
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(
            f"no peer {', '.join(sorted(unknown))}; give some of {', '.join(PEERS)}, or none"
        )
    return names


def compiler_option(text: str) -> tuple[str, Any]:
    """Reads `NAME=VALUE`, the value as Python writes it."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text} is not NAME=VALUE, such as some_flag=False"
        ) from None


def pretraining_task(arguments: argparse.Namespace, shape: Shape) -> Any:
    """The task of `configs/pretrain.py` for a shape."""
    from bert_jax.config_file import load_config, override_config
    from bert_jax.tasks.registry import load_task

    config = load_config(f"{PRETRAIN}:{shape.size}")
    config.batch_size = shape.batch_size
    config.corpus = arguments.corpus
    config.data.max_length = shape.length
    config.docs.vocabulary_size = VOCABULARY_SIZE
    config.model.compute_dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    for key, value in shape.settings.items():
        override_config(config, key if "." in key else f"model.{key}", value)
    task = load_task(config)
    # A small text cannot fill BERT's vocabulary; the model has all of it.
    encoder = dataclasses.replace(task.description.config, vocabulary_size=VOCABULARY_SIZE)
    task.description = dataclasses.replace(task.description, config=encoder)
    task.model = task.description.model()
    return task


def compile_ours(task: Any, options: Mapping[str, Any]) -> Any:
    """The step that `bert_jax.train` runs, on one device, with options of XLA's compiler."""
    import jax

    from bert_jax.tasks.program import abstract_batch, make_program
    from bert_jax.training.sharding import make_mesh

    mesh, (phase,) = make_mesh(task.config.mesh, jax.devices()[:1]), task.phases
    program = make_program(task, mesh)
    batch = abstract_batch(task, phase, phase.batch_size, mesh)
    compiled = program.compile(batch, mesh, options)
    return program, compiled, mesh


def our_turn(task: Any, program: Any, compiled: Any, mesh: Any) -> Turn:
    """That step, with the metrics that a run has."""
    import jax

    from bert_jax.training.sharding import to_global
    from bert_jax.training.state import initial_state

    settings = program.make_settings()
    state = initial_state(task.initialise, program.optimizer, program.state, jax.random.key(0))

    def turn(batches: Sequence[Batch]) -> None:
        nonlocal state
        for batch in batches:
            state, report = compiled(state, to_global(batch, mesh), settings)
        jax.block_until_ready((state, report))

    return turn


def plain_turn(task: Any) -> Turn:
    """A plain BERT in flax.linen with optax's AdamW."""
    import jax
    import jax.numpy as jnp
    import optax
    from plain_flax import PlainBert

    shape = task.description.config
    model = PlainBert(shape)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            1e-4,
            eps=1e-6,
            weight_decay=0.01,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        logits_BLV, pair_logits_B2 = model.apply(
            params,
            *(batch[name] for name in ("token_ids", "segment_ids", "lengths")),
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, batch["labels"])
        mlm = jnp.sum(losses * batch["weights"]) / jnp.sum(batch["weights"])
        pairs = optax.softmax_cross_entropy_with_integer_labels(
            pair_logits_B2, batch["next_sentence_label"]
        )
        return mlm + jnp.mean(pairs)

    def step(
        state: tuple[Any, Any, jax.Array], batch: dict[str, jax.Array]
    ) -> tuple[tuple[Any, Any, jax.Array], jax.Array]:
        params, moments, count = state
        key = jax.random.fold_in(jax.random.key(1), count)
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments, count + 1), value

    def inputs(batch: Batch) -> Batch:
        labels, weights = (np.zeros_like(batch["token_ids"]) for _ in range(2))
        rows, places = np.nonzero(batch["masked_weights"])
        columns = batch["masked_positions"][rows, places]
        labels[rows, columns] = batch["masked_labels"][rows, places]
        weights[rows, columns] = 1
        names = ("token_ids", "segment_ids", "lengths", "next_sentence_label")
        return {name: batch[name] for name in names} | {"labels": labels, "weights": weights}

    example = inputs(task.training_batch(0, slice(0, 1)))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(2)}
    ids = (example[name] for name in ("token_ids", "segment_ids", "lengths"))
    params = jax.jit(model.init)(keys, *ids)
    state = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
    compiled = jax.jit(step, donate_argnums=0)

    def turn(batches: Sequence[Batch]) -> None:
        nonlocal state
        for batch in batches:
            state, value = compiled(state, inputs(batch))
        jax.block_until_ready((state, value))

    return turn


def torch_turn(on_gpu: bool, task: Any, compiled: bool, masked_only: bool) -> Turn:
    """transformers' BertForPreTraining with torch's fused AdamW."""
    import torch
    import transformers

    shape, length = task.description.config, task.config.data.max_length
    device = torch.device("cuda" if on_gpu else "cpu")
    is_rounded = shape.compute_dtype == "bfloat16"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward_width,
        hidden_dropout_prob=shape.hidden_dropout,
        attention_probs_dropout_prob=shape.attention_dropout,
        attn_implementation="sdpa",
    )
    model = transformers.BertForPreTraining(config).train().to(device)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, eps=1e-6, fused=True)

    def masked_loss(
        inputs: dict[str, Any], positions: Any, labels: Any, next_sentence_label: Any
    ) -> Any:
        outputs = model.bert(**inputs)
        places = positions[..., None].expand(-1, -1, shape.width)
        scores = model.cls.predictions(outputs.last_hidden_state.gather(1, places))
        cross_entropy = torch.nn.functional.cross_entropy
        pairs = model.cls.seq_relationship(outputs.pooler_output)
        mlm = cross_entropy(scores.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return mlm + cross_entropy(pairs.float(), next_sentence_label)

    def whole_loss(inputs: dict[str, Any], labels: Any, next_sentence_label: Any) -> Any:
        return model(**inputs, labels=labels, next_sentence_label=next_sentence_label).loss

    forward = masked_loss if masked_only else whole_loss
    if compiled:
        forward = torch.compile(forward)

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)

    def targets(batch: Batch) -> tuple[np.ndarray, ...]:
        masked = batch["masked_weights"] > 0
        if masked_only:
            labels = np.where(masked, batch["masked_labels"], -100)
            return batch["masked_positions"], labels
        labels = np.full(batch["token_ids"].shape, -100)
        rows, places = np.nonzero(masked)
        labels[rows, batch["masked_positions"][rows, places]] = batch["masked_labels"][rows, places]
        return (labels,)

    def turn(batches: Sequence[Batch]) -> None:
        for batch in batches:
            inputs = {
                "input_ids": tensor(batch["token_ids"]),
                "token_type_ids": tensor(batch["segment_ids"]),
                "attention_mask": tensor(np.arange(length) < batch["lengths"][:, None]),
            }
            labels = map(tensor, (*targets(batch), batch["next_sentence_label"]))
            with torch.autocast(device.type, torch.bfloat16, enabled=is_rounded):
                loss = forward(inputs, *labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()

    return turn


def peer_turns(arguments: argparse.Namespace, task: Any) -> dict[str, Turn]:
    """The other contestants that were asked for."""
    turns = {PLAIN: plain_turn(task)} if "flax" in arguments.peers else {}
    for masked_only, compiled in itertools.product((False, True), repeat=2):
        peer = ("masked-" if masked_only else "") + ("compiled" if compiled else "eager")
        if peer in arguments.peers:
            changed = ", masked only" if masked_only else ""
            name = f"transformers{changed}, {'compiled' if compiled else 'eager'}"
            turns[name] = torch_turn(arguments.device == "gpu", task, compiled, masked_only)
    return turns


def measure(
    turns: Mapping[str, Turn], task: Any, rounds: int, updates: int
) -> tuple[dict[str, list[float]], float, Sequence[Batch]]:
    """The seconds of a step, by contestant and round; the real tokens of one; the last batches."""
    rows = slice(0, task.config.batch_size)
    made = (task.training_batch(number, rows) for number in itertools.count(2))
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    tokens = []
    for _ in range(rounds):
        batches = list(itertools.islice(made, updates))
        tokens.append(sum(int(batch["lengths"].sum()) for batch in batches) / len(batches))
        for name, turn in turns.items():
            start = time.perf_counter()
            turn(batches)
            seconds[name].append((time.perf_counter() - start) / len(batches))
    return seconds, statistics.fmean(tokens), batches


def tell(
    shape: Shape,
    options: list[tuple[str, Any]],
    task: Any,
    seconds: Mapping[str, list[float]],
    tokens_a_step: float,
) -> tuple[str, str]:
    """Prints the table of a shape; gives what was measured, and what it came to, in words."""
    import jax

    from bert_jax.models import peak_flops
    from bert_jax.models.config import KERNEL_FIELDS

    config, model = task.config, task.description.config
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peak = peak_flops(jax.devices()[0].device_kind)
    needed = task.flops_per_token(config.data.max_length) * tokens_a_step
    kernels = [
        f"{name.replace('_', ' ')} by {getattr(model, name)}"
        for name in KERNEL_FIELDS
        if getattr(model, name) != "xla"
    ]
    what = (
        f"training step of BERT-{shape.size}, length {config.data.max_length}, batch "
        f"{config.batch_size}, {model.compute_dtype}, attention dropout "
        f"{model.attention_dropout:g}"
    )
    apart = [each for each in shape.settings.items() if "." in each[0]] + options
    what += "".join(f", {key}={value}" for key, value in apart)
    print(f"{what}, vocabulary {VOCABULARY_SIZE}, {tokens_a_step:,.0f} real tokens a step")
    print(f"{'':38} {'median ms':>10} {'fastest ms':>11} {'tokens/s':>10} {'MFU':>6} {'times':>6}")
    for name, median in medians.items():
        utilisation = f"{needed / median / peak:.1%}" if peak else ""
        print(
            f"{name:38} {1e3 * median:10.1f} {1e3 * min(seconds[name]):11.1f} "
            f"{tokens_a_step / median:10,.0f} {utilisation:>6} {median / medians[OURS]:6.2f}"
        )
    own = medians[OURS]
    told = [f"{1e3 * own:,.0f} ms" + (f", **{needed / own / peak:.1%} MFU**" if peak else "")]
    told += [", ".join(kernels)] if kernels else []
    for name in ("transformers", "transformers, masked only", PLAIN):
        times = {each: time for each, time in medians.items() if each.startswith(name)}
        times = {each: t for each, t in times.items() if "masked" in name or "masked" not in each}
        if times:
            fastest = min(times, key=lambda each: times[each])
            ratio = times[fastest] / own
            told.append(f"{fastest}: {1e3 * times[fastest]:,.0f} ms, **{ratio:.2f} times** as long")
    return what, "; ".join(told)


def main() -> None:
    """Runs the contestants in turns, shape by shape, prints the tables, keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", type=shape, nargs="*", metavar="SIZE:LENGTH:BATCH[,KEY=VALUE]")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--corpus", default="docs", help="a prepared corpus")
    parser.add_argument(
        "--peers",
        type=peers,
        default=PEERS,
        help="flax, and transformers eager, compiled, masked-eager, masked-compiled; or none",
    )
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant")
    parser.add_argument("--updates", type=int, default=1, help="updates of a turn")
    parser.add_argument(
        "--compiler_option",
        type=compiler_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of XLA, for ours, such as xla_gpu_enable_triton_gemm=True; may be given again",
    )
    parser.add_argument("--profile", type=Path, help="a directory for xprof, of turns of ours")
    add_results_argument(parser)
    arguments = parser.parse_args()
    arguments.shapes = arguments.shapes or [shape("mini:128:32")]

    if arguments.device == "cpu":
        use_cpu(arguments.threads)
    versions = {}
    if set(arguments.peers) - {"flax"}:
        import torch
        import transformers

        if arguments.device == "gpu" and not torch.cuda.is_available():
            parser.error("--device gpu: PyTorch finds none; install one for CUDA, or --peers none")
        torch.set_num_threads(arguments.threads)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    import jax

    if arguments.device == "gpu" and jax.default_backend() != "gpu":
        parser.error("--device gpu: JAX finds none; pip install -e '.[cuda]'")
    for measured in arguments.shapes:
        task = pretraining_task(arguments, measured)
        if task.config.data.sequences_per_row > 1 and arguments.peers:
            parser.error("the peers cannot read rows that sequences share; give --peers none")
        warm_up = [
            task.training_batch(number, slice(0, task.config.batch_size)) for number in range(2)
        ]
        # Compiled while the others are.
        with futures.ThreadPoolExecutor(1) as pool:
            ours = pool.submit(compile_ours, task, dict(arguments.compiler_option))
            turns = peer_turns(arguments, task)
            for peer in turns.values():
                peer(warm_up)
        turns = {OURS: our_turn(task, *ours.result()), **turns}
        turns[OURS](warm_up)
        seconds, tokens, batches = measure(turns, task, arguments.rounds, arguments.updates)
        what, figure = tell(measured, arguments.compiler_option, task, seconds, tokens)
        if arguments.profile:
            with jax.profiler.trace(arguments.profile):
                turns[OURS](batches)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        numbers = {"seconds": seconds, "median_seconds": medians, "tokens_a_step": tokens}
        others = {each.text for each in arguments.shapes} - {measured.text}
        keep(arguments.results, what, figure, numbers, versions, others)
        # And with them the memory of their parameters.
        turns.clear()
        peer = None
        if versions and arguments.device == "gpu":
            torch.compiler.reset()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    run(main)
