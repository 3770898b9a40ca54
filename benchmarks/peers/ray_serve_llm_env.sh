#!/usr/bin/env bash
# Makes the environment of benchmarks/peers/ray_serve_llm.py, once; prints its python, last. Does nothing where it is done.
#
# ray.serve.llm and ray.data.llm are one extra of Ray, with one set of requirements: so this is ray.data.llm's
# environment (2 GB, 3 minutes), and what is added here is the proof that both can be imported from it.
set -euo pipefail

python=$("$(dirname "$0")/ray_data_env.sh" | tail -n 1)
"$python" -c 'import vllm, ray.serve.llm' >/dev/null || {
  echo "ray.serve.llm cannot be imported by $python: see the error above" >&2
  exit 1
}
echo "$python"
