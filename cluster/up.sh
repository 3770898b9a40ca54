#!/usr/bin/env bash
# From nothing to a server on EKS: cluster, nodes, storage, operators, monitoring, secrets, server. Each step can be run
# again. What it costs starts with the first; `cluster/down.sh` ends it.
#   HOST=llm.example.com MAIL=ops@example.com PRESET=8b-tp2 cluster/up.sh [--auto-mode | --existing-vpc] [--dry-run]
# --existing-vpc: VPC_ID, and SUBNETS, two private subnets of different zones with a comma between.
# EXTERNAL_SECRETS=1 installs that operator and a store of AWS Secrets Manager; BUCKET is for results (serve-app-ACCOUNT-REGION).
# VALUES=mine.yaml is a values file of yours (k8s/README.md) in place of HOST, PRESET and the account's registry; NAME and
# NAMESPACE are to be those in it. CLUSTER and AWS_REGION are those of cluster/eks/cluster.yaml. HF_TOKEN is for gated models. The order of the steps is the
# order in which they need each other.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
AUTO_MODE=0 EXISTING_VPC=0
rest=()
for argument in "$@"; do
  case $argument in
    --auto-mode) AUTO_MODE=1 ;;
    --existing-vpc) EXISTING_VPC=1 ;;
    *) rest+=("$argument") ;;
  esac
done
options "${rest[@]}"
HOST=${HOST:-serve-app.example.com}
MAIL=${MAIL:-}
PRESET=${PRESET:-8b-tp2}
need aws eksctl kubectl helm envsubst openssl
MODE=$EKS
[ "$AUTO_MODE" = 1 ] && MODE=$EKS/auto-mode
[ "$AUTO_MODE$EXISTING_VPC" = 11 ] && fail "--auto-mode and --existing-vpc: there is no file for both; add the vpc of existing-vpc.yaml"
ACCOUNT=$(account)
BUCKET=${BUCKET:-serve-app-$ACCOUNT-$AWS_REGION}
BUILD=${BUILD:-$ROOT/build/eks}
REGISTRY="$ACCOUNT.dkr.ecr.$AWS_REGION.amazonaws.com"
export HOST MAIL PRESET

main() {
  make_cluster
  make_nodes
  make_storage
  make_bucket
  install_operators
  install_monitoring
  render
  make_secrets
  push_image
  deploy
}

make_cluster() {
  say "cluster $CLUSTER in $AWS_REGION (20 minutes)"
  if [ "$DRY_RUN" = 1 ] || ! aws eks describe-cluster --name "$CLUSTER" >/dev/null 2>&1; then
    if [ "$EXISTING_VPC" = 1 ]; then in_existing_vpc; else run eksctl create cluster -f "$MODE/cluster.yaml"; fi
  fi
  run aws eks update-kubeconfig --name "$CLUSTER"
}

# Subnets are found by tags: of nodes by Karpenter's, of internal load balancers by Kubernetes'.
in_existing_vpc() {
  SUBNET_A=${SUBNETS:-} SUBNET_B=${SUBNETS:-}
  SUBNET_A=${SUBNET_A%%,*} SUBNET_B=${SUBNET_B##*,}
  if [ -z "${VPC_ID:-}" ] || [ -z "$SUBNET_A" ] || [ "$SUBNET_A" = "$SUBNET_B" ]; then
    fail "--existing-vpc needs VPC_ID and SUBNETS=subnet-…,subnet-…, two private ones in different zones"
  fi
  ZONE_A=$(zone "$SUBNET_A") ZONE_B=$(zone "$SUBNET_B")
  export VPC_ID SUBNET_A SUBNET_B ZONE_A ZONE_B
  run aws ec2 create-tags --resources "$SUBNET_A" "$SUBNET_B" \
    --tags "Key=karpenter.sh/discovery,Value=$CLUSTER" Key=kubernetes.io/role/internal-elb,Value=1
  # shellcheck disable=SC2016
  envsubst '$VPC_ID $SUBNET_A $SUBNET_B $ZONE_A $ZONE_B' <"$EKS/existing-vpc.yaml" | piped existing-vpc eksctl create cluster -f -
}

zone() { lookup aws ec2 describe-subnets --subnet-ids "$1" --query 'Subnets[0].AvailabilityZone' --output text; }

make_nodes() {
  say "GPU node pools: nothing is bought before a pod asks"
  NODE_ROLE=$(lookup aws eks describe-cluster --name "$CLUSTER" --query cluster.computeConfig.nodeRoleArn --output text)
  NODE_ROLE=${NODE_ROLE##*/}
  export NODE_ROLE
  # shellcheck disable=SC2016  # envsubst's own
  envsubst '$CLUSTER $NODE_ROLE' <"$MODE/node-class.yaml" | piped node-class kubectl apply --server-side -f -
  run kubectl apply --server-side -f "$MODE/node-pools.yaml"
  [ "$AUTO_MODE" = 1 ] || chart gpu-operator gpu-operator nvidia https://helm.ngc.nvidia.com/nvidia gpu-operator "$GPU_OPERATOR_VERSION"
}

make_storage() {
  say "FSx for Lustre"
  SUBNET=$(lookup aws eks describe-cluster --name "$CLUSTER" --query 'cluster.resourcesVpcConfig.subnetIds[0]' --output text)
  SECURITY_GROUP=$(lookup aws eks describe-cluster --name "$CLUSTER" --query cluster.resourcesVpcConfig.clusterSecurityGroupId --output text)
  export SUBNET SECURITY_GROUP
  # shellcheck disable=SC2016
  envsubst '$CLUSTER $SUBNET $SECURITY_GROUP' <"$EKS/storage.yaml" | piped storage kubectl apply --server-side -f -
}

# Each call sets what it names, so all of them can be made again. Results are replaced conditionally (If-Match), which needs
# neither versions nor locks; versions are against mistakes of people, and go after 30 days.
make_bucket() {
  say "bucket $BUCKET for results"
  if [ "$DRY_RUN" = 0 ] && aws s3api head-bucket --bucket "$BUCKET" >/dev/null 2>&1; then
    if ! aws s3api get-bucket-tagging --bucket "$BUCKET" --query "TagSet[?Key=='serve-app'].Value" --output text 2>/dev/null | grep -q .; then
      echo "it is there and was not made by this script (no tag serve-app): left as it is"
      return
    fi
  else
    local place=(--create-bucket-configuration "LocationConstraint=$AWS_REGION")
    [ "$AWS_REGION" = us-east-1 ] && place=() # S3 has no such constraint
    run aws s3api create-bucket --bucket "$BUCKET" --object-ownership BucketOwnerEnforced "${place[@]}"
    run aws s3api put-bucket-tagging --bucket "$BUCKET" --tagging 'TagSet=[{Key=serve-app,Value=true}]'
  fi
  run aws s3api put-public-access-block --bucket "$BUCKET" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
  run aws s3api put-bucket-encryption --bucket "$BUCKET" --server-side-encryption-configuration \
    '{"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}'
  run aws s3api put-bucket-versioning --bucket "$BUCKET" --versioning-configuration Status=Enabled
  run aws s3api put-bucket-lifecycle-configuration --bucket "$BUCKET" --lifecycle-configuration "file://$EKS/bucket/lifecycle.json"
  # shellcheck disable=SC2016
  run aws s3api put-bucket-policy --bucket "$BUCKET" --policy "$(BUCKET=$BUCKET envsubst '$BUCKET' <"$EKS/bucket/policy.json")"
}

install_operators() {
  say "KubeRay, Gateway API, cert-manager, load balancer"
  chart kuberay-operator kuberay-operator kuberay https://ray-project.github.io/kuberay-helm kuberay-operator "$KUBERAY_VERSION" kuberay
  run helm upgrade --install eg oci://docker.io/envoyproxy/gateway-helm --version "$ENVOY_GATEWAY_VERSION" \
    --namespace envoy-gateway-system --create-namespace --wait
  chart cert-manager cert-manager jetstack https://charts.jetstack.io cert-manager "$CERT_MANAGER_VERSION" cert-manager
  run kubectl apply --server-side -f "$EKS/internal-ca.yaml"
  if [ "${EXTERNAL_SECRETS:-0}" = 1 ]; then
    chart external-secrets external-secrets external-secrets https://charts.external-secrets.io external-secrets "$EXTERNAL_SECRETS_VERSION"
    # shellcheck disable=SC2016
    envsubst '$AWS_REGION' <"$EKS/secret-store.yaml" | piped secret-store kubectl apply --server-side -f -
  fi
  [ "$AUTO_MODE" = 1 ] || chart aws-load-balancer-controller kube-system eks https://aws.github.io/eks-charts \
    aws-load-balancer-controller "$LOAD_BALANCER_VERSION" "" --set "clusterName=$CLUSTER"
  if [ -n "$MAIL" ]; then
    # shellcheck disable=SC2016
    envsubst '$MAIL' <"$ROOT/cluster/helm/cert-manager-issuer.yaml" | piped issuer kubectl apply --server-side -f -
  fi
}

install_monitoring() {
  say "Prometheus and Grafana"
  run kubectl create namespace monitoring --dry-run=client -o yaml | piped namespace kubectl apply -f -
  secret monitoring grafana-admin user=admin "password=$(openssl rand -hex 16)"
  chart prometheus monitoring prometheus-community https://prometheus-community.github.io/helm-charts kube-prometheus-stack "$PROMETHEUS_VERSION" prometheus
  [ "$AUTO_MODE" = 0 ] || chart dcgm-exporter monitoring gpu-helm-charts https://nvidia.github.io/dcgm-exporter/helm-charts dcgm-exporter "$DCGM_EXPORTER_VERSION" dcgm-exporter
}

make_secrets() {
  say "secrets, those that are not there yet"
  run kubectl apply --server-side -f "$BUILD/base.yaml"
  if grep -qx 'kind: ExternalSecret' "$BUILD/base.yaml"; then
    run kubectl -n "$NAMESPACE" wait externalsecrets --all --for=condition=Ready --timeout=5m
    return
  fi
  secret "$NAMESPACE" "$NAME-redis" "password=$(openssl rand -hex 32)"
  secret "$NAMESPACE" "$NAME-vllm" "api-key=$(openssl rand -hex 32)"
  secret "$NAMESPACE" "$NAME-kernels-redis" "password=$(openssl rand -hex 32)"
  [ -z "${HF_TOKEN:-}" ] || secret "$NAMESPACE" "$NAME-hub" "token=$HF_TOKEN"
  if [ "$DRY_RUN" = 1 ] || ! kubectl -n "$NAMESPACE" get secret "$NAME-keys" >/dev/null 2>&1; then
    folder=$(mktemp -d)
    say "your API key, shown this once:"
    run serve-app keys create admin --file "$folder/keys.yaml"
    run kubectl -n "$NAMESPACE" create secret generic "$NAME-keys" --from-file="keys.yaml=$folder/keys.yaml"
    rm -rf "$folder"
  fi
}

push_image() {
  say "image"
  if [ "$DRY_RUN" = 1 ] || ! aws ecr describe-repositories --repository-names serve-app >/dev/null 2>&1; then
    run aws ecr create-repository --repository-name serve-app --image-scanning-configuration scanOnPush=true \
      --tags Key=serve-app,Value=true
  fi
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ aws ecr get-login-password | docker login --username AWS --password-stdin $REGISTRY"
  else
    aws ecr get-login-password | docker login --username AWS --password-stdin "$REGISTRY"
  fi
  DRY_RUN=$DRY_RUN "$ROOT/cluster/image.sh" cuda "$REGISTRY"
}

render() {
  say "manifests, in $BUILD"
  rm -rf "$BUILD" && mkdir -p "$BUILD"
  values >"$BUILD/values.yaml"
  serve-app k8s render --values "$BUILD/values.yaml" --out "$BUILD"
}

deploy() {
  say "server, preset $PRESET"
  # Server-side: each field has an owner, so that an apply takes nothing from the operator or the autoscalers.
  run kubectl apply --server-side -k "$BUILD"
  run kubectl -n monitoring apply --server-side -k "$ROOT/k8s/monitoring/dashboards"
  run kubectl -n "$NAMESPACE" wait "rayservice/$NAME" --for=condition=Ready --timeout=60m
  say "up; now cluster/verify.sh"
}

# What only this account knows, or a whole values file of yours.
values() {
  if [ -n "${VALUES:-}" ]; then
    cat "$VALUES"
  else
    cat <<YAML
name: $NAME
namespace: $NAMESPACE
images: { registry: $REGISTRY }
ingress: { host: $HOST }
run: { server: $PRESET }
store: s3://$BUCKET/runs
population_store: s3://$BUCKET/populations
monitoring: true
YAML
  fi
}

# chart RELEASE NAMESPACE REPOSITORY URL CHART VERSION [VALUES [more…]]
chart() {
  local release=$1 namespace=$2 repository=$3 url=$4 name=$5 version=$6 values=${7:-$1}
  shift $(($# > 6 ? 7 : 6))
  local file=$ROOT/cluster/helm/$values.yaml arguments=()
  [ -f "$file" ] && arguments=(--values "$file")
  run helm repo add --force-update "$repository" "$url"
  run helm upgrade --install "$release" "$repository/$name" --version "$version" --namespace "$namespace" \
    --create-namespace --wait "${arguments[@]}" "$@"
}

# secret NAMESPACE NAME KEY=VALUE…: made once, and never printed.
secret() {
  local namespace=$1 name=$2 pair arguments=()
  shift 2
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ kubectl -n $namespace create secret generic $name (unless it is there)"
    return
  fi
  kubectl -n "$namespace" get secret "$name" >/dev/null 2>&1 && return
  folder=$(mktemp -d) # by files: arguments are seen by `ps`
  for pair in "$@"; do
    printf '%s' "${pair#*=}" >"$folder/${pair%%=*}"
    arguments+=("--from-file=${pair%%=*}=$folder/${pair%%=*}")
  done
  kubectl -n "$namespace" create secret generic "$name" "${arguments[@]}"
  rm -rf "$folder"
}

lookup() {
  if [ "$DRY_RUN" = 1 ]; then echo LOOKED-UP; else "$@"; fi
}

main
