#!/usr/bin/env bash
# Builds the serving image and brings it where it is needed.
#   cluster/image.sh cpu|cuda [REGISTRY]     with a registry it is pushed; without, loaded into kind if kind is there
# DRY_RUN=1 prints what would be done.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
target=${1:?cpu or cuda}
registry=${2:-}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml")
image="${registry:+$registry/}serve-app:$version-$target"
need docker
run docker build --target "$target" --file "$ROOT/cluster/Dockerfile" --tag "$image" "$ROOT"
if [ -n "$registry" ]; then
  run docker push "$image"
elif command -v kind >/dev/null; then
  run kind load docker-image "$image"
fi
echo "$image"
