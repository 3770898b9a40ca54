"""Rules for AWS: data outlives its claim, and nodes are the same tomorrow."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, rule


@rule("retained")
def retained(manifests: Sequence[Manifest]) -> Found:
    """A file system with weights and jobs."""
    for storage in of_kind(manifests, "StorageClass"):
        if storage.get("provisioner") != "fsx.csi.aws.com":
            continue
        parameters = storage.get("parameters") or {}
        if storage.get("reclaimPolicy") != "Retain":
            yield storage, "reclaimPolicy is not Retain: a deleted claim would take weights and jobs with it"
        if not str(parameters.get("deploymentType", "")).startswith("PERSISTENT"):
            yield storage, "deploymentType is not persistent: a failed server would take the data with it"
        elif str(parameters.get("automaticBackupRetentionDays", "0")) == "0":
            yield storage, "automaticBackupRetentionDays is 0: there are no backups"


@rule("pinned-nodes")
def pinned_nodes(manifests: Sequence[Manifest]) -> Found:
    for node_class in of_kind(manifests, "EC2NodeClass"):
        for term in node_class["spec"].get("amiSelectorTerms") or []:
            if str(term.get("alias", "")).endswith("@latest"):
                yield node_class, f"{term['alias']} moves: new nodes would differ from those that run; name a release"
            elif not {"alias", "id"} & set(term):
                yield node_class, "chooses images by tags or a name, which move; name a release (alias) or an id"
    for cluster in of_kind(manifests, "ClusterConfig"):
        for group in cluster.get("managedNodeGroups") or []:
            if not group.get("releaseVersion") and not str(group.get("ami", "")).startswith("ami-"):
                yield cluster, f"node group {group.get('name')} has no releaseVersion, so its image is the newest"
