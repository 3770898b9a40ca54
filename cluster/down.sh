#!/usr/bin/env bash
# Ends everything that up.sh began, in an order in which nothing is left but data, and lists what is left all the same.
#   cluster/down.sh [--keep-cluster] [--delete-data] [--dry-run]      YES=1 asks nothing
# Data stays: of each file system a backup is made before it goes, unless --delete-data says otherwise, and the bucket with the
# results is never touched. Both bill, little, until you delete them.
# The order: what runs on Ray before Redis, operator and namespace (a finalizer of each RayCluster needs all three); ingress
# before its controller, claims before their driver (they own load balancers and file systems); nodes before Karpenter.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
KEEP_CLUSTER=0 DELETE_DATA=0
rest=()
for argument in "$@"; do
  case $argument in
    --keep-cluster) KEEP_CLUSTER=1 ;;
    --delete-data) DELETE_DATA=1 ;;
    *) rest+=("$argument") ;;
  esac
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
  local data="its file systems are backed up first"
  [ "$DELETE_DATA" = 0 ] || data="its file systems go WITHOUT A BACKUP, with weights and jobs on them"
  say "$CLUSTER in $AWS_REGION ends; $data; buckets stay"
  [ "$DRY_RUN" = 1 ] || [ "${YES:-0}" = 1 ] && return
  read -r -p "Type its name to go on: " answer
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
  keep_volumes # a class of before had `Delete`, which ends a file system without a backup
  for space in $(spaces); do
    erase "$space" statefulsets
    erase "$space" persistentvolumeclaims
  done
  run helm uninstall prometheus --namespace monitoring --ignore-not-found --wait
  erase monitoring persistentvolumeclaims
  end_file_systems
  local volume found # an assignment of its own ends the script if the look-up fails, a loop would go on with nothing
  found=$(volumes Retain)
  for volume in $found; do
    run kubectl delete persistentvolume "$volume" --wait --timeout=10m --ignore-not-found
  done
  # A claim is gone before what it stands for is.
  until_none "persistentvolumes of ours" volumes
}

# Lustre's alone: others hold nothing but metrics, and what Redis remembers.
keep_volumes() {
  local volume found
  found=$(volumes Delete fsx.csi.aws.com)
  for volume in $found; do
    run kubectl patch persistentvolume "$volume" -p '{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}'
  done
}

# The final backup is part of the deletion: without it the file system stays.
end_file_systems() {
  local id found backup="SkipFinalBackup=false,FinalBackupTags=[{Key=serve-app,Value=true},{Key=serve-app-cluster,Value=$CLUSTER}]"
  [ "$DELETE_DATA" = 0 ] || backup=SkipFinalBackup=true
  found=$(file_systems " && Lifecycle!='DELETING'")
  for id in $found; do
    run aws fsx delete-file-system --file-system-id "$id" --lustre-configuration "$backup"
  done
  until_none "file systems of the cluster (a backup takes up to an hour)" file_systems
}

# file_systems [CONDITION]: the cluster's, by their tag; never one that somebody else made.
file_systems() {
  if [ "$DRY_RUN" = 1 ]; then echo FILE-SYSTEM; return; fi
  aws fsx describe-file-systems --output text \
    --query "FileSystems[?Tags[?Key=='serve-app-cluster' && Value=='$CLUSTER']${1:-}].FileSystemId" | tr '\t' '\n'
}

# volumes [POLICY [DRIVER]]: those of our namespaces' claims, and of Prometheus'.
volumes() {
  if [ "$DRY_RUN" = 1 ]; then echo "VOLUME-${1:-}"; return; fi
  kubectl get persistentvolumes --no-headers -o custom-columns=\
NAME:.metadata.name,SPACE:.spec.claimRef.namespace,POLICY:.spec.persistentVolumeReclaimPolicy,DRIVER:.spec.csi.driver |
    awk -v spaces=" $(spaces | tr '\n' ' ') monitoring " -v policy="${1:-}" -v driver="${2:-}" \
      'index(spaces, " " $2 " ") && (policy == "" || $3 == policy) && (driver == "" || $4 == driver) { print $1 }'
}

end_nodes() {
  say "nodes that Karpenter bought"
  run kubectl delete nodepools.karpenter.sh -l app.kubernetes.io/part-of=serve-app --wait --timeout=20m --ignore-not-found
  gone "" nodeclaims.karpenter.sh -l serve-app/capacity
}

end_operators() {
  say "operators and namespace"
  for space in $(spaces); do # while their operator is there
    erase "$space" externalsecrets.external-secrets.io
  done
  local release
  for release in dcgm-exporter/monitoring kuberay-operator/kuberay-operator cert-manager/cert-manager external-secrets/external-secrets \
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

# until_none WHAT COMMAND: wait until the command prints nothing, 90 minutes at most.
until_none() {
  local what=$1 left deadline=$((SECONDS + 5400))
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ until no $what is left"
    return
  fi
  while true; do
    left=$("$2") || fail "cannot tell whether any $what is left"
    [ -n "$left" ] || return 0
    [ "$SECONDS" -lt "$deadline" ] || fail "still there after 90 minutes: $left"
    sleep 15
  done
}

# What bills and is still there. Images, backups and buckets are kept on purpose: they hold results.
left() {
  say "left, with our tags"
  listed instances aws ec2 describe-instances --filters "Name=tag:aws:eks:cluster-name,Values=$CLUSTER" \
    "Name=instance-state-name,Values=pending,running,stopping,stopped" --query 'Reservations[].Instances[].InstanceId' --output text
  listed volumes aws ec2 describe-volumes --filters "Name=tag:kubernetes.io/cluster/$CLUSTER,Values=owned" \
    --query 'Volumes[].VolumeId' --output text
  listed file-systems aws fsx describe-file-systems --output text \
    --query "FileSystems[?Tags[?Key=='serve-app'] && !Tags[?Key=='serve-app-cluster' && Value!='$CLUSTER']].FileSystemId"
  listed backups aws fsx describe-backups --output text \
    --query "Backups[?Tags[?Key=='serve-app-cluster' && Value=='$CLUSTER']].BackupId"
  listed buckets aws resourcegroupstaggingapi get-resources --resource-type-filters s3 --tag-filters Key=serve-app \
    --query 'ResourceTagMappingList[].ResourceARN' --output text
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
    log-groups | repositories | backups | buckets) ;; # kept on purpose, at little cost
    *) [ "$found" = none ] || bills=1 ;;
  esac
}

main
