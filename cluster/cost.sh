#!/usr/bin/env bash
# What runs now, and what AWS asks for it: nodes by type and way of buying, at list prices; volumes, file systems with their
# GiB and backups, buckets and load balancers by number. Retained file systems bill after their claims are gone. Prices are
# asked of AWS each time; spot is the present one. Contracts, traffic and tax are not in it.
#   cluster/cost.sh [--dry-run]
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
options "$@"
need aws

main() {
  say "instances of $CLUSTER in $AWS_REGION"
  local total=0 unknown='' type bought count price
  while read -r type bought count; do
    [ -n "$type" ] || continue
    if [ "$bought" = spot ]; then price=$(spot_price "$type"); else price=$(list_price "$type"); fi
    printf '%6s × %-16s %-10s %10s USD/h each\n' "$count" "$type" "$bought" "$price"
    if [ "$price" = '?' ]; then unknown+=" $type"; continue; fi
    total=$(awk -v a="$total" -v n="$count" -v p="$price" 'BEGIN { printf "%.4f", a + n * p }')
  done < <(instances)
  echo "instances together: $total USD/h${unknown:+, and what AWS gave no price for:$unknown}"
  say "billed beside them"
  count file-systems aws fsx describe-file-systems --query "length(FileSystems[?Tags[?Key=='serve-app']])" --output text
  count file-systems-gib aws fsx describe-file-systems --output text \
    --query "sum(FileSystems[?Tags[?Key=='serve-app']].StorageCapacity)"
  count backups aws fsx describe-backups --query "length(Backups[?Tags[?Key=='serve-app']])" --output text
  count buckets aws resourcegroupstaggingapi get-resources --resource-type-filters s3 --tag-filters Key=serve-app \
    --query 'length(ResourceTagMappingList)' --output text
  count volumes aws ec2 describe-volumes --filters "Name=tag:kubernetes.io/cluster/$CLUSTER,Values=owned" \
    --query 'length(Volumes)' --output text
  count load-balancers aws resourcegroupstaggingapi get-resources --resource-type-filters elasticloadbalancing:loadbalancer \
    --tag-filters "Key=elbv2.k8s.aws/cluster,Values=$CLUSTER" --query 'length(ResourceTagMappingList)' --output text
  count clusters aws eks list-clusters --query "length(clusters[?@=='$CLUSTER'])" --output text
}

# Lines of: type, spot or on-demand, number.
instances() {
  if [ "$DRY_RUN" = 1 ]; then
    echo "+ aws ec2 describe-instances (running, of the cluster)" >&2
    printf 'm7i.2xlarge on-demand 3\n'
    return
  fi
  # shellcheck disable=SC2016  # JMESPath's own quotes
  aws ec2 describe-instances \
    --filters "Name=tag:aws:eks:cluster-name,Values=$CLUSTER" "Name=instance-state-name,Values=pending,running" \
    --query 'Reservations[].Instances[].[InstanceType, InstanceLifecycle || `on-demand`]' --output text |
    sort | uniq -c | awk '{ print $2, $3, $1 }'
}

list_price() {
  if [ "$DRY_RUN" = 1 ]; then echo '?'; return; fi
  # The price list's service is in few regions.
  aws pricing get-products --region us-east-1 --service-code AmazonEC2 --output text --query 'PriceList[0]' --filters \
    "Type=TERM_MATCH,Field=instanceType,Value=$1" "Type=TERM_MATCH,Field=regionCode,Value=$AWS_REGION" \
    Type=TERM_MATCH,Field=operatingSystem,Value=Linux Type=TERM_MATCH,Field=tenancy,Value=Shared \
    Type=TERM_MATCH,Field=preInstalledSw,Value=NA Type=TERM_MATCH,Field=capacitystatus,Value=Used |
    grep -oE '"USD": ?"[0-9.]+"' | grep -oE '[0-9.]+' | awk '$1 > 0 { print; found = 1; exit } END { if (!found) print "?" }'
}

spot_price() {
  if [ "$DRY_RUN" = 1 ]; then echo '?'; return; fi
  aws ec2 describe-spot-price-history --instance-types "$1" --product-descriptions Linux/UNIX --max-items 1 \
    --query 'SpotPriceHistory[0].SpotPrice' --output text | head -n 1
}

count() {
  local what=$1; shift
  if [ "$DRY_RUN" = 1 ]; then run "$@"; else printf '%-16s %s\n' "$what" "$("$@")"; fi
}

main
