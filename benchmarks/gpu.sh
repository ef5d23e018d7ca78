#!/usr/bin/env bash
# The lines of a GPU: BERT-base and BERT-large at lengths 128 and 512 in bfloat16, ours next to
# transformers through torch.compile, in one run each, with the kernels that were fastest on an H100
# (docs/performance.md). Needs jax and torch for CUDA, transformers and a prepared corpus; two
# to four minutes a line, most of which is for the compilers.
#
#   benchmarks/gpu.sh benchmarks/results/h100.json data/mine [profiles]
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: benchmarks/gpu.sh RESULTS CORPUS [DIRECTORY-OF-PROFILES]"
results=${1:?$usage}
corpus=${2:?$usage}
profiles=${3-}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory too

step() { # SHAPE [PEERS [ARGUMENT...]]
  python benchmarks/train_step.py --device gpu --corpus "$corpus" --peers "${2-compiled}" \
    --rounds 5 --updates 10 --results "$results" ${profiles:+--profile "$profiles"} "${@:3}" \
    "$1,residual_norm=triton,remat=none"
}

python -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu" and "error: JAX finds no GPU")'
python tests/gpu_parity.py
python benchmarks/kernels.py base:128:256 base:512:64 --results "$results"
step base:128:256,unroll=12,attention=triton
# XLA then knows from the start that cuBLAS multiplies, and adds in its products' epilogues.
step base:128:256,unroll=12,attention=triton none --compiler_option xla_gpu_enable_triton_gemm=False
# Rows that are full, as those of the trainers are that have no next sentences.
step base:128:256,unroll=12,attention=triton,data.objective=none
# And those of pairs, of which two may share one.
step base:128:256,unroll=12,attention=triton,data.sequences_per_row=2 none
step large:512:32,unroll=24,attention=cudnn,attention_dropout=0.0
step base:512:64,unroll=12,attention=cudnn,attention_dropout=0.0
step large:128:128,unroll=24,attention=triton
step base:512:64,unroll=12,attention=triton
step large:512:32,unroll=24,attention=triton
for elements in 1024 4096; do # that two thousand suit registers best was only predicted
  python benchmarks/kernels.py --only norm --set "triton_norm._BACKWARD_ELEMENTS=$elements" \
    --results "$results"
done
