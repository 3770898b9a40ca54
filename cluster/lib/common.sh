# shellcheck shell=bash
# What the cluster's scripts share: saying, dry runs, and where the facts are. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
EKS="$ROOT/cluster/eks"
# shellcheck source=cluster/helm/versions.env
source "$ROOT/cluster/helm/versions.env"
DRY_RUN=${DRY_RUN:-0}
# Of the installation, as in its values.
NAMESPACE=${NAMESPACE:-serve-app}
NAME=${NAME:-serve-app}
export NAMESPACE NAME

# The name and the region are cluster.yaml's alone.
fact() { sed -n "/^metadata:/,/^[^ ]/s/^  $1: *//p" "$EKS/cluster.yaml" | head -n 1; }
CLUSTER=${CLUSTER:-$(fact name)}
AWS_REGION=${AWS_REGION:-$(fact region)}
export CLUSTER AWS_REGION

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { echo "$*" >&2; exit 1; }

# Run a command, or with DRY_RUN=1 print it as it would be run.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '+'; printf ' %q' "$@"; printf '\n'
  else
    "$@"
  fi
}

# The same for standard input: `piped NAME COMMAND…` prints what NAME is and reads it all.
piped() {
  local what=$1; shift
  if [ "$DRY_RUN" = 1 ]; then
    cat >/dev/null
    printf '+ <%s>' "$what"; printf ' | %q' "$1"; shift; printf ' %q' "$@"; printf '\n'
  else
    "$@"
  fi
}

need() {
  [ "$DRY_RUN" = 1 ] && return
  local tool
  for tool in "$@"; do command -v "$tool" >/dev/null || fail "$tool is needed and not here"; done
}

options() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) DRY_RUN=1 ;;
      --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
      *) fail "unknown option $argument; see --help" ;;
    esac
  done
}

account() {
  if [ "$DRY_RUN" = 1 ]; then echo 000000000000; else aws sts get-caller-identity --query Account --output text; fi
}
