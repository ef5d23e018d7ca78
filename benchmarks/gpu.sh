#!/usr/bin/env bash
# The lines of a GPU: BERT-base and BERT-large at lengths 128 and 512 in bfloat16, ours next to
# transformers through torch.compile, in one run each; with attention dropout, and without it by
# cuDNN's kernel. Needs jax[cuda12], a torch for CUDA, and transformers.
#
#   benchmarks/gpu.sh benchmarks/results/h100.json [profiles]
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:?usage: benchmarks/gpu.sh RESULTS [DIRECTORY-OF-PROFILES]}
profiles=${2-}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory too

step() {
  local name=$1
  shift
  python benchmarks/train_step.py --device gpu --peers torch --rounds 7 --updates 20 \
    --results "$results" ${profiles:+--profile "$profiles/$name"} "$@"
}

for size in base large; do
  [[ $size == base ]] && sequences=(256 64) || sequences=(128 32)
  for length in 128 512; do
    [[ $length == 128 ]] && batch=${sequences[0]} || batch=${sequences[1]}
    shape=(--size "$size" --length "$length" --batch_size "$batch")
    step "$size-$length-xla" "${shape[@]}"
    step "$size-$length-cudnn" "${shape[@]}" --attention cudnn --attention_dropout 0
  done
done
