#!/usr/bin/env bash
# Is the server up, and does it answer? Looks from the outside in: nodes, pods, RayService, then `serve-app check` through a
# port-forward, then through HOST if it is given. Ends with 1 at the first thing that is wrong.
#   SERVE_APP_API_KEY=sk-… [HOST=llm.example.com] [REPLICAS=2] [SCHEME=https] cluster/verify.sh [--dry-run]
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
options "$@"
need kubectl serve-app
REPLICAS=${REPLICAS:-1}
PORT=${PORT:-18000}
SCHEME=${SCHEME:-http} # https where the values have tls.pods

main() {
  say "GPU nodes"
  run kubectl get nodes -L serve-app/gpu,serve-app/capacity,node.kubernetes.io/instance-type
  say "pods"
  run kubectl -n "$NAMESPACE" get pods -o wide
  say "RayService"
  run kubectl -n "$NAMESPACE" wait "rayservice/$NAME" --for=condition=Ready --timeout="${TIMEOUT:-60m}"
  run kubectl -n "$NAMESPACE" get rayservice "$NAME" \
    -o jsonpath='{range .status.activeServiceStatus.applicationStatuses.*}{.status}{"\n"}{end}'
  say "from inside"
  inside
  if [ -n "${HOST:-}" ]; then
    say "from outside"
    run env -u SSL_CERT_FILE serve-app check --base-url "https://$HOST" --replicas "$REPLICAS"
  fi
  say "without a key nobody gets in"
  refused
}

inside() {
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ kubectl -n $NAMESPACE port-forward service/$NAME-serve-svc $PORT:8000 &"
    run serve-app check --base-url "$SCHEME://127.0.0.1:$PORT" --replicas "$REPLICAS"
    return
  fi
  kubectl -n "$NAMESPACE" port-forward "service/$NAME-serve-svc" "$PORT:8000" >/dev/null &
  forward=$!
  folder=$(mktemp -d)
  trap 'kill "$forward" 2>/dev/null || true; rm -rf "$folder"' EXIT
  if [ "$SCHEME" = https ]; then # by its authority, or else by itself
    certificate "ca\.crt" >"$folder/ca.crt"
    [ -s "$folder/ca.crt" ] || certificate "tls\.crt" >"$folder/ca.crt"
    export SSL_CERT_FILE=$folder/ca.crt CURL_CA_BUNDLE=$folder/ca.crt
  fi
  for _ in $(seq 30); do
    curl -fsS "$SCHEME://127.0.0.1:$PORT/-/healthz" >/dev/null 2>&1 && break
    sleep 1
  done
  serve-app check --base-url "$SCHEME://127.0.0.1:$PORT" --replicas "$REPLICAS"
}

certificate() { kubectl -n "$NAMESPACE" get secret "$NAME-pods-tls" -o "jsonpath={.data.$1}" | base64 -d; }

refused() {
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ curl $SCHEME://127.0.0.1:$PORT/v1/models   (401 expected)"
    return
  fi
  status=$(curl -s -o /dev/null -w '%{http_code}' "$SCHEME://127.0.0.1:$PORT/v1/models")
  [ "$status" = 401 ] || fail "GET /v1/models without a key answered $status, not 401"
}

main
