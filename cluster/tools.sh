#!/usr/bin/env bash
# Brings promtool, which no Python package carries, from Debian's package into .venv/bin, without installing the server.
# Without it `make k8s-check` still parses the rules, and says that they were not run.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/promtool ] && exit
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if (cd "$folder" && apt-get download prometheus && dpkg-deb --extract prometheus_*.deb .) >/dev/null 2>&1; then
  install -m 755 "$folder/usr/bin/promtool" .venv/bin/promtool
else
  echo "promtool could not be had (Debian's package prometheus)" >&2
fi
