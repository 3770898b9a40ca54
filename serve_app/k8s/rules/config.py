"""Rules for serveConfigV2, alone and against its pods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from serve_app.k8s.pods import GPU_RESOURCE
from serve_app.k8s.rules.manifests import (
    Found,
    Manifest,
    deployments,
    limit,
    mounted,
    of_kind,
    ray_clusters,
    rule,
    serve_configs,
    templates,
)
from serve_app.k8s.serve_config import HTTP_PORT, SETTINGS
from serve_app.settings import BATCHES_APP, DRIVER_APP, FILES_APP, REPLICA_DEPLOYMENT, REPLICAS_APP


@rule("settings")
def settings(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(manifests):
        applications = {app.get("name"): app for app in document.get("applications") or []}
        for name, model in SETTINGS.items():
            if name not in applications:
                yield owner, f"serveConfigV2 has no application '{name}'"
                continue
            try:
                model.model_validate(applications[name].get("args") or {})
            except ValueError as error:
                yield owner, f"application '{name}': {' '.join(str(error).split())}"


@rule("proxies")
def proxies(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(manifests):
        if document.get("proxy_location") != "EveryNode":
            yield owner, f"proxy_location {document.get('proxy_location')}: every worker would be NotReady for ever"
        http = document.get("http_options") or {}
        if owner.get("kind") == "RayService" and (http.get("host") != "0.0.0.0" or http.get("port") != HTTP_PORT):
            yield owner, f"http_options are not 0.0.0.0:{HTTP_PORT}, where the Service and the probes look"


@rule("keys")
def keys(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        folders = None
        for application in document.get("applications") or []:
            args = application.get("args") or {}
            access = args if application.get("name") == BATCHES_APP else args.get("access") or {}
            files = access.get("key_files") or []
            if not files:
                yield owner, f"application '{application.get('name')}' has no access.key_files: anybody may"
            folders = folders or [mounted(template.main) for template in templates([owner])]
            for file in files:
                if any(str(PurePosixPath(file).parent) not in paths for paths in folders):
                    yield owner, f"application '{application.get('name')}': {file} is not mounted in every pod"


@rule("store")
def store(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        stores = {
            application["name"]: (application.get("args") or {}).get("store")
            for application in document.get("applications") or []
            if application.get("name") in (DRIVER_APP, FILES_APP)
        }
        if len(set(stores.values())) > 1:
            yield owner, "populations and files have different stores, so batches would not find their files"
        folder = str(stores.get(DRIVER_APP) or "")
        if "://" in folder:
            continue
        if not folder.startswith("/"):
            yield owner, f"store '{folder}' is in the container, and goes with it: use the volume claim or a URL"
            continue
        writers = [t for t in templates([owner]) if t.labels.get("serve-app/part") == "control"]
        for template in writers or list(templates([owner])):
            if not any(PurePosixPath(folder).is_relative_to(path) for path in mounted(template.main, writable=True)):
                yield owner, f"store '{folder}' is on no volume of the pods that run the driver"


@rule("drain")
def drain(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        longest = max((d.get("graceful_shutdown_timeout_s", 20) for _, d in deployments(document)), default=20)
        for template in templates([owner]):
            grace = template.spec.get("terminationGracePeriodSeconds", 30)
            if template.place == "worker" and grace < longest:
                yield owner, f"terminationGracePeriodSeconds {grace} cuts streams that may take {longest:g} s to end"


@rule("tensor-parallel")
def tensor_parallel(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        workers = [t for t in templates([owner]) if t.place == "worker"]
        for application, deployment in deployments(document):
            if deployment.get("name") != REPLICA_DEPLOYMENT:
                continue
            options = deployment.get("ray_actor_options") or {}
            gpus, cpus = options.get("num_gpus", 0), options.get("num_cpus", 1)
            ranks = ((application.get("args") or {}).get("engine") or {}).get("tensor_parallel_size", 1)
            if gpus and gpus != ranks:
                yield owner, f"the actor has num_gpus {gpus:g} and tensor_parallel_size is {ranks}"
            with_gpus = [worker for worker in workers if limit(worker.main, GPU_RESOURCE)]
            if with_gpus and not gpus:
                yield owner, "workers have GPUs and the actor asks for none"
            for worker in with_gpus:
                if gpus and limit(worker.main, GPU_RESOURCE) % gpus:
                    yield owner, f"{worker.group['groupName']}: its GPUs are no multiple of the actor's {gpus:g}"
            if gpus and not with_gpus:
                yield owner, f"the actor asks for {gpus:g} GPUs and no worker has any"
            if all(limit(worker.main, "cpu") < cpus for worker in with_gpus or workers):
                yield owner, f"no worker has the {cpus:g} CPUs that the actor asks for"


@rule("room-for-replicas")
def room_for_replicas(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        cluster = dict((id(o), c) for o, c in ray_clusters([owner]))[id(owner)]
        for application, deployment in deployments(document):
            if application.get("name") != REPLICAS_APP or deployment.get("name") != REPLICA_DEPLOYMENT:
                continue
            scaling = deployment.get("autoscaling_config") or {}
            most = scaling.get("max_replicas", deployment.get("num_replicas", 1))
            if scaling.get("min_replicas", 0) > most:
                yield owner, f"autoscaling_config: min_replicas is above max_replicas {most}"
            options = deployment.get("ray_actor_options") or {}
            need, resource = (options["num_gpus"], GPU_RESOURCE) if options.get("num_gpus") else (
                options.get("num_cpus", 1), "cpu")  # fmt: skip
            room = sum(
                group.get("maxReplicas", 1) * (limit(group["template"]["spec"]["containers"][0], resource) // need)
                for group in cluster.get("workerGroupSpecs") or []
            )
            if need and most > room:
                yield owner, f"{most} replicas may be asked for, and the worker groups have room for {room:g}"


@rule("surge")
def surge(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        for _, deployment in deployments(document):
            if deployment.get("autoscaling_config") and deployment.get("max_surge_percent") != 100:
                yield owner, f"{deployment['name']}: nodes come by themselves, so max_surge_percent is to be 100"
