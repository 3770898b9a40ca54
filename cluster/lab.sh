#!/usr/bin/env bash
# The second day, on a kind cluster of its own: two applies of everything, Pod Security, an upgrade and an eviction beside a running
# population, deletion. Each is asserted; the last line is JSON: seconds by step, and the step that failed. Engines are simulated,
# so a machine without GPUs does, of 4 cores and 28 GiB: an upgrade has two Ray clusters beside the population's.
#   cluster/lab.sh [--keep]         --keep: the cluster stays, also after a failure (`kind delete cluster --name serve-app-lab`)
# Needs docker, kind, kubectl, helm, serve-app. 30 to 60 minutes with the image's build; IMAGE=0 if the image is there.
set -euo pipefail
umask 077 # keys
source "$(dirname "$0")/lib/common.sh"
CLUSTER=serve-app-lab
# Of cluster/lab/*.yaml.
NAME=lab NAMESPACE=serve-app-lab
LAB=$ROOT/cluster/lab
BUILD=${BUILD:-$ROOT/build/lab}
PAUSE=${PAUSE:-3}          # seconds between two looks
PATIENCE=${PATIENCE:-100} # percent of the times that steps may take
KEEP=0
for argument in "$@"; do
  case $argument in
    --keep) KEEP=1 ;;
    --dry-run) fail "the lab has no dry run: it asserts what a cluster answers, and touches its own kind cluster alone" ;;
    *) options "$argument" ;;
  esac
done

STEPS=() STEP="" BEGAN=0 MADE=0

main() {
  trap finish EXIT
  need docker kind kubectl helm serve-app
  step cluster make_cluster
  step operator install_operator
  step apply apply_server
  step ready server_is_ready
  step apply_again nothing_changes "$BUILD/lab"
  step pod_security level_is_enforced
  step population population_runs
  step upgrade upgrade_beside_population
  step upgrade_again nothing_changes "$BUILD/lab"
  step eviction evict_replicas
  step population_ends population_succeeds
  step population_again finished_population_stays
  step deletion delete_everything
}

make_cluster() {
  kind get clusters 2>/dev/null | grep -qx "$CLUSTER" && fail "a cluster $CLUSTER is there: kind delete cluster --name $CLUSTER"
  [[ $(kind version) == *"$KIND_VERSION"* ]] || say "kind is not $KIND_VERSION, whose node image this is"
  kind create cluster --name "$CLUSTER" --image "$KIND_NODE" --wait 5m
  MADE=1
  [ "${IMAGE:-1}" = 0 ] || docker build --target cpu --file "$ROOT/cluster/Dockerfile" --tag "$(image)" "$ROOT"
  kind load docker-image --name "$CLUSTER" "$(image)"
}

install_operator() {
  helm --kube-context "kind-$CLUSTER" upgrade --install kuberay-operator kuberay-operator \
    --repo https://ray-project.github.io/kuberay-helm --version "$KUBERAY_VERSION" \
    --namespace kuberay-operator --create-namespace --values "$ROOT/cluster/helm/kuberay.yaml" --wait
}

apply_server() {
  rm -rf "$BUILD"
  render_server 60
  k apply --server-side -f "$BUILD/server/base.yaml"
  serve-app keys create lab --file "$BUILD/keys.yaml" >"$BUILD/key"
  k -n "$NAMESPACE" create secret generic "$NAME-keys" --from-file="$BUILD/keys.yaml"
  k -n "$NAMESPACE" create secret generic "$NAME-redis" --from-literal=password=lab
  k apply --server-side -k "$BUILD/lab"
}

server_is_ready() {
  k -n "$NAMESPACE" wait "rayservice/$NAME" --for=condition=Ready --timeout=30m
  # In another namespace, as a load balancer: the policies let private addresses reach port 8000.
  k create secret generic lab-key --from-file="key=$BUILD/key"
  k apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: { name: asker }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: asker
      image: $(image)
      command: [bash, -c]
      args:
        - |
          key=\$(cat /key/key)
          while sleep 0.5; do
            wget -qO /dev/null --timeout 10 --tries 1 --header "Authorization: Bearer \$key" \\
              http://$NAME-serve-svc.$NAMESPACE:8000/v1/models && echo answered || echo "failed \$(date +%T)"
          done
      volumeMounts: [{ name: key, mountPath: /key }]
  volumes: [{ name: key, secret: { secretName: lab-key } }]
YAML
  within 300 "the server answers" answers
}

# Of an apply of what is there: no conflict, no difference, no new generation of any object.
nothing_changes() {
  local before after
  before=$(generations)
  [ -n "$before" ] || fail "no object has a generation"
  k apply --server-side -k "$1"
  k diff --server-side -k "$1" || fail "kubectl diff finds differences after a second apply"
  after=$(generations)
  [ "$before" = "$after" ] || fail "a second apply changed objects:"$'\n'"$(diff <(echo "$before") <(echo "$after"))"
}

level_is_enforced() {
  local said
  if said=$(k -n "$NAMESPACE" run privileged --image=busybox:1.37.0 --privileged --dry-run=server 2>&1); then
    fail "the namespace takes a privileged pod"
  fi
  [[ $said == *'violates PodSecurity "baseline'* ]] || fail "a privileged pod was refused, but not by Pod Security: $said"
  said=$(k -n "$NAMESPACE" get events -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}')
  [[ $said != *"violates PodSecurity"* ]] || fail "Pod Security refused a pod of ours: $(grep -m 1 "violates PodSecurity" <<<"$said")"
}

population_runs() {
  serve-app k8s render --values "$LAB/population.yaml" --out "$BUILD/population"
  k apply --server-side -k "$BUILD/population"
  within 1200 "the population runs" job_says '.status.jobStatus' RUNNING
}

upgrade_beside_population() {
  local before asked failed
  before=$(active_cluster)
  [ -n "$before" ] || fail "the RayService names no active cluster"
  asked=$(count failed)
  render_server 61 # a variable of every pod: a new cluster
  k apply --server-side -k "$BUILD/lab"
  within 1800 "another cluster serves than $before" is_upgraded "$before"
  k -n "$NAMESPACE" wait "rayservice/$NAME" --for=condition=Ready --timeout=10m
  job_says '.status.jobStatus' RUNNING || fail "the population no longer runs after the upgrade: give it more rows, if it is done"
  within 600 "the old cluster $before is gone" is_gone "raycluster/$before"
  failed=$(($(count failed) - asked))
  [ "$failed" = 0 ] || fail "$failed requests failed during the upgrade"
}

evict_replicas() {
  local pod
  pod=$(k -n "$NAMESPACE" get pods -l "ray.io/cluster=$(active_cluster),serve-app/part=replica" -o 'jsonpath={.items[0].metadata.name}')
  k create --raw "/api/v1/namespaces/$NAMESPACE/pods/$pod/eviction" -f - <<JSON
{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "$pod", "namespace": "$NAMESPACE"}}
JSON
  within 300 "the evicted pod $pod is gone" is_gone "pod/$pod"
  within 600 "the server answers again" answers
}

population_succeeds() {
  within 3600 "the population is done" job_says '.status.jobDeploymentStatus' Complete
  job_says '.status.jobStatus' SUCCEEDED || fail "the population ended as $(job '.status.jobStatus')"
}

finished_population_stays() {
  local began
  began=$(job '.status.startTime')
  nothing_changes "$BUILD/population"
  sleep "$((PAUSE * 5))"
  [ "$(job '.status.startTime')" = "$began" ] || fail "the finished population ran again"
  job_says '.status.jobStatus' SUCCEEDED || fail "the finished population is $(job '.status.jobStatus')"
}

delete_everything() {
  k delete pod asker --wait
  # Ray first: each cluster's finalizer needs Redis and the operator.
  k -n "$NAMESPACE" delete rayservices,rayjobs --all --timeout=10m
  within 600 "no RayCluster is left" nothing_of rayclusters -n "$NAMESPACE"
  k delete -k "$BUILD/population" --ignore-not-found --timeout=5m
  k delete -k "$BUILD/lab" --ignore-not-found --timeout=10m
  within 300 "the namespace is gone" is_gone "namespace/$NAMESPACE"
  nothing_of priorityclasses -l app.kubernetes.io/part-of=serve-app || fail "PriorityClasses are left"
  within 120 "no volume is left" nothing_of persistentvolumes
}

# The server's manifests with this drain time, and an upgrade that makes a new cluster (on CPU the rendered one is None).
render_server() {
  mkdir -p "$BUILD/lab"
  { cat "$LAB/server.yaml"; echo "drain_s: $1"; } >"$BUILD/server.yaml"
  cp "$LAB/serve.yaml" "$BUILD/serve.yaml"
  serve-app k8s render --values "$BUILD/server.yaml" --out "$BUILD/server"
  cat >"$BUILD/lab/kustomization.yaml" <<'YAML'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../server]
patches:
  - target: { kind: RayService }
    patch: '[{"op": "replace", "path": "/spec/upgradeStrategy/type", "value": "NewCluster"}]'
YAML
}

k() { kubectl --context "kind-$CLUSTER" "$@"; }

image() { echo "serve-app:$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml")-cpu"; }

generations() {
  k -n "$NAMESPACE" get rayservices,rayjobs,statefulsets,jobs,networkpolicies \
    -o 'jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation}{"\n"}{end}'
}

active_cluster() { k -n "$NAMESPACE" get "rayservice/$NAME" -o 'jsonpath={.status.activeServiceStatus.rayClusterName}'; }

is_upgraded() {
  local now
  now=$(active_cluster)
  [ -n "$now" ] && [ "$now" != "$1" ]
}

job() { k -n "$NAMESPACE" get rayjobs -o "jsonpath={.items[0]$1}"; }
job_says() { [ "$(job "$1")" = "$2" ]; }
count() { k logs asker | grep -c "^$1" || true; } # of the asker's requests

answers() {
  local before
  before=$(count answered)
  sleep "$PAUSE"
  [ "$(count answered)" -gt "$before" ]
}

is_gone() {
  local flags=(-n "$NAMESPACE")
  [[ $1 == namespace/* ]] && flags=()
  [ -z "$(k "${flags[@]}" get "$1" --ignore-not-found -o name)" ]
}

nothing_of() { [ -z "$(k get "$@" -o name)" ]; }

# within SECONDS WHAT COMMAND…: until the command is true.
within() {
  local seconds=$1 what=$2 end=$((SECONDS + $1 * PATIENCE / 100))
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "not within $seconds s: $what"
    sleep "$PAUSE"
  done
}

# step NAME COMMAND…
step() {
  STEP=$1 BEGAN=$SECONDS
  shift
  say "$STEP"
  "$@"
  STEPS+=("\"$STEP\": $((SECONDS - BEGAN))")
  STEP=""
}

finish() {
  local status=$? steps
  [ "$status" = 0 ] || [ -z "$STEP" ] || [ "$MADE" = 0 ] || {
    say "failed: $STEP" >&2
    k -n "$NAMESPACE" get rayservices,rayclusters,rayjobs,pods -o wide >&2 || true
  }
  [ "$KEEP" = 1 ] || [ "$MADE" = 0 ] || kind delete cluster --name "$CLUSTER" >&2 || true
  steps=$(IFS=,; echo "${STEPS[*]}")
  printf '{"seconds": {%s}, "failed": %s, "kubernetes": "%s", "kuberay": "%s"}\n' "${steps//,/, }" \
    "$([ -n "$STEP" ] && echo "\"$STEP\"" || echo null)" "${KIND_NODE%%@*}" "$KUBERAY_VERSION"
  exit "$status"
}

main
