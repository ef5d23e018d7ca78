#!/usr/bin/env bash
# The lines of a GPU: BERT-base and BERT-large at lengths 128 and 512 in bfloat16, four of them next
# to transformers through torch.compile, with the kernels that were fastest on an H100
# (docs/performance.md). Needs jax and torch for CUDA, transformers and a corpus that was prepared
# with --max_length 512; one to two minutes a line, most of which is for the compilers. A line that
# fails is told, and the others go on.
#
#   benchmarks/gpu.sh benchmarks/results/h100.json data/mine [profiles]
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: benchmarks/gpu.sh RESULTS CORPUS [DIRECTORY-OF-PROFILES]"
results=${1:?$usage}
corpus=${2:?$usage}
profiles=${3-}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory too

failed=0

try() { # COMMAND...
  "$@" || { failed=1 && echo "error: this failed: $*" >&2; }
}

step() { # SHAPE [PEERS]
  try python benchmarks/train_step.py --device gpu --corpus "$corpus" --peers "${2-compiled}" \
    --rounds 5 --updates 10 --results "$results" ${profiles:+--profile "$profiles"} \
    "$1,residual_norm=triton,gelu=triton,remat=none"
}

python -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu" and "error: JAX finds no GPU")'
python -c 'import sys; from bert_jax.data.corpus import open_corpus
sys.exit(open_corpus(sys.argv[1]).max_length < 512 and
         f"error: {sys.argv[1]} was not prepared with --max_length 512")' "$corpus"
python tests/gpu_parity.py
try python benchmarks/kernels.py base:128:256 base:512:64 --results "$results"
step large:512:32,attention=cudnn,attention_dropout=0.0,unroll=24
step base:128:256,attention=triton,unroll=12
step base:512:64,attention=cudnn,attention_dropout=0.0,unroll=12
step large:128:128,attention=triton,unroll=24
step large:512:64,attention=cudnn,attention_dropout=0.0,unroll=24 none
# Rows that are full, as those of the trainers are that have no next sentences.
step base:128:256,attention=triton,unroll=12,data.objective=none none
# And those of pairs, of which two may share one.
step base:128:256,attention=triton,unroll=12,data.sequences_per_row=2 none
step base:512:64,attention=triton,unroll=12 none
step large:512:32,attention=triton,unroll=24 none
step base:128:256,attention=triton,unroll=12 masked-compiled
for elements in 1024 4096; do # that two thousand suit best was only predicted
  try python benchmarks/kernels.py --only norm --set "triton_norm._BACKWARD_ELEMENTS=$elements" \
    --results "$results"
done
exit $failed
