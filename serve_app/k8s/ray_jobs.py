"""RayJobs: a cluster for one population, gone when it is done; and one engine over several nodes."""

from __future__ import annotations

import json

from serve_app.k8s.pods import (
    HOME,
    ONLINE_PRIORITY,
    POPULATION_PRIORITY,
    VLLM_SECRET,
    WORKER_ACCOUNT,
    Manifest,
    container,
    data_volume,
    gpu_placement,
    gpu_resources,
    labels,
    metadata,
    pod,
    same_resources,
)
from serve_app.k8s.ray_cluster import HEAD_PORTS, WORKER_PORTS, container_ports, ray_cluster
from serve_app.k8s.ray_service import yaml_text
from serve_app.k8s.serve_config import HTTP_PORT, serve_config
from serve_app.k8s.standalone import flags
from serve_app.k8s.values import Preset, Values, ray_version
from serve_app.settings import BATCHES_APP

POPULATION = "population"
CONFIG_FOLDER = "/etc/serve-app/population"
# The job's id is the RayJob's, so that a second try finds what the first one committed and goes on.
RUN_POPULATION = f"""\
set -eu
serve run --non-blocking {CONFIG_FOLDER}/serve.yaml
until serve-app population list --json >/dev/null 2>&1; do sleep 2; done
serve-app population status "$JOB_ID" >/dev/null 2>&1 && serve-app population resume "$JOB_ID" >/dev/null ||
  serve-app population submit --spec {CONFIG_FOLDER}/population.json --job-id "$JOB_ID"
serve-app population watch "$JOB_ID"
"""
MULTI_NODE = "serve-app-multi-node"


def population_job(values: Values, preset: Preset) -> list[Manifest]:
    """RayJob and its ConfigMap: replicas on spot nodes, which may go at any time, as outcomes are committed."""
    cluster = ray_cluster(values, preset, capacity="spot", priority=POPULATION_PRIORITY)
    # Ends with its job: what must outlive a head is in the store.
    del cluster["gcsFaultToleranceOptions"]
    volume = {"name": "population", "configMap": {"name": POPULATION}}
    head = cluster["headGroupSpec"]["template"]["spec"]
    head["volumes"].append(volume)
    head["containers"][0]["volumeMounts"].append({"name": "population", "mountPath": CONFIG_FOLDER, "readOnly": True})
    document = serve_config(values.model_copy(update={"store": values.population_store}), preset)
    for application in document["applications"]:  # nobody but the job reaches it
        access = application["args"] if application["name"] == BATCHES_APP else application["args"]["access"]
        del access["key_files"]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(values, POPULATION, POPULATION),
            "data": {
                "serve.yaml": yaml_text(document),
                "population.json": json.dumps(values.population, indent=2) + "\n",
                "run.sh": RUN_POPULATION,
            },
        },
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata(values, POPULATION, POPULATION),
            "spec": {
                "entrypoint": f"bash {CONFIG_FOLDER}/run.sh",
                "runtimeEnvYAML": yaml_text({"env_vars": {"JOB_ID": POPULATION}}),
                "submissionMode": "K8sJobMode",
                "backoffLimit": 2,  # clusters; within one, the driver and Serve recover by themselves
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": 300,
                "activeDeadlineSeconds": 24 * 3600,
                "rayClusterSpec": cluster,
                "submitterPodTemplate": submitter(values, preset),
            },
        },
    ]


def multi_node(values: Values, preset: Preset) -> list[Manifest]:
    """One vLLM over `pipeline_parallel` nodes by its Ray executor: the head has the first one's GPUs.

    It is no replica of ours, whose workers are its own children and so on one node: populations reach it as a provider.
    """
    nodes = preset.pipeline_parallel
    (replicas,) = [app for app in serve_config(values, preset)["applications"] if app["route_prefix"] == "/"]
    options = {
        **replicas["args"]["engine"],
        "pipeline_parallel_size": nodes,
        "distributed_executor_backend": "ray",
        "host": "0.0.0.0",
    }
    del options["enable_prompt_tokens_details"], options["scheduling_policy"]  # of populations' replicas
    return [
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata(values, MULTI_NODE, "multi-node"),
            "spec": {
                "entrypoint": " ".join(["vllm", "serve", *flags(options)]),
                "submissionMode": "K8sJobMode",
                "backoffLimit": 3,
                "shutdownAfterJobFinishes": True,
                "submitterPodTemplate": submitter(values, preset),
                "rayClusterSpec": {
                    "rayVersion": ray_version(),
                    "authOptions": {"mode": "token"},
                    "headGroupSpec": {
                        "rayStartParams": {"dashboard-host": "0.0.0.0"},
                        "template": multi_node_template(values, preset, "ray-head", "multi-node"),
                    },
                    "workerGroupSpecs": [
                        {
                            "groupName": f"{preset.gpu}-nodes",
                            "replicas": nodes - 1,
                            "minReplicas": nodes - 1,
                            "maxReplicas": nodes - 1,
                            "rayStartParams": {},
                            "template": multi_node_template(values, preset, "ray-worker", "multi-node-worker"),
                        }
                    ],
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(values, MULTI_NODE, "multi-node"),
            "spec": {"selector": labels("multi-node"), "ports": [{"name": "http", "port": HTTP_PORT}]},
        },
    ]


def multi_node_template(values: Values, preset: Preset, name: str, part: str) -> Manifest:
    """A pod that has a whole node: its GPUs and its network adapters, by which the stages talk."""
    gpu = values.gpus[preset.gpu or ""]
    data, mount = data_volume(models_only=True)
    resources = gpu_resources(values, preset, preset.tensor_parallel)
    if gpu.efa:
        # Pinned memory of the adapters, which EKS's images for EFA reserve.
        for amounts in resources.values():
            amounts |= {"vpc.amazonaws.com/efa": str(gpu.efa), "hugepages-2Mi": "10Gi"}
    ray = container(
        values, preset, name, resources=resources, mounts=(mount,),
        ports=container_ports(HEAD_PORTS if name == "ray-head" else WORKER_PORTS),
        env=[
            {"name": "HOME", "value": HOME},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_PORT", "value": "20000"},
            {"name": "FI_PROVIDER", "value": "efa"},
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": VLLM_SECRET, "key": "api-key"}}},
        ],
    )  # fmt: skip
    # NCCL registers memory with the adapter, beyond the 64 KiB that a process may lock without.
    ray["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    spec = pod(
        values,
        [ray],
        account=WORKER_ACCOUNT,
        priority=ONLINE_PRIORITY,
        volumes=(data,),
        **gpu_placement(preset, "on-demand"),
    )
    # One placement group of the network: stages that are far apart wait for each other.
    spec["affinity"] = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "topology.kubernetes.io/zone",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "multi-node"}},
                }
            ]
        }
    }
    return {"metadata": {"labels": {**labels(part), "app.kubernetes.io/component": "multi-node"}}, "spec": spec}


def submitter(values: Values, preset: Preset) -> Manifest:
    """The pod that submits the entrypoint and follows its log: our image, as it must have the same Ray."""
    submit = container(values, preset, "ray-job-submitter", resources=same_resources(1, 1))
    spec = pod(values, [submit], account=WORKER_ACCOUNT, priority=POPULATION_PRIORITY, restartPolicy="Never")
    spec["terminationGracePeriodSeconds"] = 30
    return {"metadata": {"labels": labels("submitter")}, "spec": spec}
