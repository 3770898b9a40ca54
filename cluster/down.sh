#!/usr/bin/env bash
# Ends everything that up.sh began, in an order in which nothing is left that bills, and lists what is left all the same.
#   cluster/down.sh [--keep-cluster] [--dry-run]      YES=1 asks nothing
# The order: what runs on Ray before Redis, operator and namespace (a finalizer of each RayCluster needs all three); ingress
# before its controller, claims before their driver (they own load balancers and file systems); nodes before Karpenter.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
KEEP_CLUSTER=0
rest=()
for argument in "$@"; do
  if [ "$argument" = --keep-cluster ]; then KEEP_CLUSTER=1; else rest+=("$argument"); fi
done
options "${rest[@]}"
need aws kubectl helm eksctl

main() {
  sure
  end_ray
  end_ingress
  end_volumes
  end_nodes
  end_operators
  if [ "$KEEP_CLUSTER" = 0 ]; then end_cluster; fi
  left
}

sure() {
  [ "$DRY_RUN" = 1 ] || [ "${YES:-0}" = 1 ] && return
  read -r -p "Delete $CLUSTER in $AWS_REGION, with its weights and the jobs on its volume? Type its name: " answer
  [ "$answer" = "$CLUSTER" ] || fail "left as it is"
}

end_ray() {
  say "Ray: services, jobs, clusters, and the Jobs that clean Redis up"
  for space in $(spaces); do
    erase "$space" rayservices.ray.io
    erase "$space" rayjobs.ray.io
    gone "$space" rayclusters.ray.io
    erase "$space" deployments
    erase "$space" jobs
  done
}

end_ingress() {
  say "load balancers"
  for space in $(spaces); do
    erase "$space" ingresses
    erase "$space" gateways.gateway.networking.k8s.io
  done
}

end_volumes() {
  say "Redis, volumes and file systems"
  for space in $(spaces); do
    erase "$space" statefulsets
    erase "$space" persistentvolumeclaims
  done
  run helm uninstall prometheus --namespace monitoring --ignore-not-found --wait
  erase monitoring persistentvolumeclaims
  # A claim is gone before what it stands for is.
  gone "" persistentvolumes
}

end_nodes() {
  say "nodes that Karpenter bought"
  run kubectl delete nodepools.karpenter.sh -l app.kubernetes.io/part-of=serve-app --wait --timeout=20m --ignore-not-found
  gone "" nodeclaims.karpenter.sh -l serve-app/capacity
}

end_operators() {
  say "operators and namespace"
  local release
  for release in dcgm-exporter/monitoring kuberay-operator/kuberay-operator cert-manager/cert-manager \
    eg/envoy-gateway-system gpu-operator/gpu-operator aws-load-balancer-controller/kube-system; do
    run helm uninstall "${release%%/*}" --namespace "${release#*/}" --ignore-not-found --wait
  done
  for space in $(spaces); do
    run kubectl delete namespace "$space" --wait --timeout=10m --ignore-not-found
  done
}

end_cluster() {
  say "cluster (15 minutes)"
  run eksctl delete cluster --name "$CLUSTER" --region "$AWS_REGION" --wait --disable-nodegroup-eviction
}

# Of all installations: their Namespaces have our label; one that somebody else made is NAMESPACE.
spaces() {
  echo "$NAMESPACE"
  [ "$DRY_RUN" = 1 ] || kubectl get namespaces -l app.kubernetes.io/part-of=serve-app \
    -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' | grep -vx "$NAMESPACE" || true
}

# erase NAMESPACE TYPE: all of them, and wait; nothing if the cluster does not know the type.
erase() {
  if [ "$DRY_RUN" = 0 ] && ! kubectl -n "$1" get "$2" >/dev/null 2>&1; then return; fi
  run kubectl -n "$1" delete "$2" --all --wait --timeout=30m --ignore-not-found
}

# gone NAMESPACE TYPE [SELECTOR…]: wait until none is left, 30 minutes at most.
gone() {
  local namespace=$1 left deadline=$((SECONDS + 1800))
  shift
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ until no $* is left in ${namespace:-the cluster}"
    return
  fi
  while left=$(kubectl ${namespace:+-n "$namespace"} get "$@" -o name 2>/dev/null) && [ -n "$left" ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "still there after 30 minutes: $left"
    sleep 5
  done
}

# What bills and is still there. Images and buckets are kept on purpose: they hold results.
left() {
  say "left, with our tags"
  listed instances aws ec2 describe-instances --filters "Name=tag:aws:eks:cluster-name,Values=$CLUSTER" \
    "Name=instance-state-name,Values=pending,running,stopping,stopped" --query 'Reservations[].Instances[].InstanceId' --output text
  listed volumes aws ec2 describe-volumes --filters "Name=tag:kubernetes.io/cluster/$CLUSTER,Values=owned" \
    --query 'Volumes[].VolumeId' --output text
  listed file-systems aws fsx describe-file-systems --query "FileSystems[?Tags[?Key=='serve-app']].FileSystemId" --output text
  listed load-balancers aws resourcegroupstaggingapi get-resources --resource-type-filters elasticloadbalancing \
    --tag-filters "Key=elbv2.k8s.aws/cluster,Values=$CLUSTER" --query 'ResourceTagMappingList[].ResourceARN' --output text
  listed addresses aws ec2 describe-addresses --filters "Name=tag:alpha.eksctl.io/cluster-name,Values=$CLUSTER" \
    --query 'Addresses[].AllocationId' --output text
  listed log-groups aws logs describe-log-groups --log-group-name-prefix "/aws/eks/$CLUSTER" \
    --query 'logGroups[].logGroupName' --output text
  listed repositories aws ecr describe-repositories --repository-names serve-app --query 'repositories[].repositoryUri' --output text
  listed stacks aws cloudformation list-stacks --query \
    "StackSummaries[?starts_with(StackName, 'eksctl-$CLUSTER') && StackStatus!='DELETE_COMPLETE'].StackName" --output text
  if [ "$bills" = 1 ]; then fail "something is left that bills; delete it by hand, or run this again"; fi
}

bills=0
listed() {
  local what=$1 found; shift
  if [ "$DRY_RUN" = 1 ]; then run "$@"; return; fi
  found=$("$@" 2>/dev/null || true)
  [ -n "$found" ] && [ "$found" != None ] || found=none
  printf '%-16s %s\n' "$what" "$found"
  case $what in
    log-groups | repositories) ;; # cents, and kept on purpose
    *) [ "$found" = none ] || bills=1 ;;
  esac
}

main
