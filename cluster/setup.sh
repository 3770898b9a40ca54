#!/usr/bin/env bash
# Sets up everything in .venv: pinned packages, this project, the default model. Run by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m%s\033[0m\n' "$*"; }
python="${PYTHON:-python3}"
torch=$(grep '^torch==' requirements.txt)
log=.venv/setup.log
started=$SECONDS

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; set PYTHON=… (found: $("$python" --version 2>&1))" >&2
  exit 1
}
[ -x .venv/bin/python ] || { say "making .venv"; "$python" -m venv .venv; }
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@" >>"$log" 2>&1; }

# The CPU build of PyTorch is in PyTorch's own index, which may be out of reach; a machine may offer the wheel
# by pip's find-links instead. So: first as pip is configured, then with that index.
if ! .venv/bin/python -c "import importlib.metadata as m; raise SystemExit(m.version('torch') != '${torch#torch==}')" 2>/dev/null; then
  say "installing $torch (about 200 MB)"
  pip install --no-deps --no-compile "$torch" ||
    pip install --no-deps --no-compile --retries 2 --timeout 30 \
      --index-url https://download.pytorch.org/whl/cpu "$torch" || {
    echo "$torch was found neither in pip's configured places nor at https://download.pytorch.org/whl/cpu." >&2
    echo "Put its wheel into a folder and run: PIP_FIND_LINKS=/that/folder make setup   (log: $log)" >&2
    exit 1
  }
fi

say "installing pinned packages (1 to 2 minutes the first time)"
# --no-deps: the list is complete, and resolving would bring CUDA builds of torchvision, torchaudio and triton,
# which break the import of transformers beside a CPU build of torch.
pip install --no-deps --no-compile -r <(grep -v '^torch==' requirements.txt) || { tail -n 5 "$log" >&2; exit 1; }
pip install --no-deps --no-build-isolation -e . || { tail -n 5 "$log" >&2; exit 1; }
install_s=$((SECONDS - started))

say "preparing the default model, compiling bytecode (up to a minute the first time)"
started=$SECONDS
# pip was told not to compile, as it would one file after the other. Without bytecode each of a dozen starting processes
# compiles what it imports, every time where PYTHONDONTWRITEBYTECODE is set: two replicas were ready after 63 s with it
# and 154 s without. Files that are meant for other Pythons fail, which is no matter.
.venv/bin/python -m compileall -q -j 0 .venv/lib >>"$log" 2>&1 &
.venv/bin/python -m serve_app.models.default >>"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
wait $! || true
say "set up: packages ${install_s} s, model and bytecode $((SECONDS - started)) s"
