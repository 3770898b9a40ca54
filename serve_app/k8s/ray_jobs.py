"""RayJobs: a temporary cluster for one population, and one engine over several nodes."""

from __future__ import annotations

import json

from serve_app.k8s.pods import (
    CAPABILITIES_REASON,
    HOME,
    ONLINE,
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
    secret_variable,
)
from serve_app.k8s.ray_cluster import HEAD_PORTS, POPULATION_RUN, WORKER_PORTS, container_ports, ray_cluster
from serve_app.k8s.ray_service import yaml_text
from serve_app.k8s.serve_config import HTTP_PORT, serve_config
from serve_app.k8s.standalone import flags
from serve_app.k8s.values import Preset, Values, digest, ray_version
from serve_app.k8s.values_file.options import Tls
from serve_app.settings import BATCHES_APP

POPULATION = "population"
CONFIG_FOLDER = "/etc/serve-app/population"
# The id is a hash of the request: a retry resumes, and another population is another job.
RUN_POPULATION = f"""\
set -eu
serve run --non-blocking {CONFIG_FOLDER}/serve.yaml
until serve-app population list --json >/dev/null 2>&1; do sleep 2; done
serve-app population status "$JOB_ID" >/dev/null 2>&1 && serve-app population resume "$JOB_ID" >/dev/null ||
  serve-app population submit --spec {CONFIG_FOLDER}/population.json --job-id "$JOB_ID"
serve-app population watch "$JOB_ID"
"""
MULTI_NODE = "multi-node"
EFA_REASON = "NCCL registers memory with the network adapters (IPC_LOCK)"


def population_job(values: Values, preset: Preset) -> list[Manifest]:
    """RayJob and ConfigMap. Replicas run on spot nodes; committed outcomes survive a lost node.

    Its server listens on loopback and has no keys, so only the job reaches it.
    """
    job_id = population_id(values, preset)
    name = values.named(job_id)
    cluster = ray_cluster(values, preset, POPULATION_RUN)
    volume = {"name": "population", "configMap": {"name": name}}
    head = cluster["headGroupSpec"]["template"]["spec"]
    head["volumes"].append(volume)
    head["containers"][0]["volumeMounts"].append({"name": "population", "mountPath": CONFIG_FOLDER, "readOnly": True})
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(values, name, POPULATION),
            "data": {
                "serve.yaml": yaml_text(population_config(values, preset, job_id)),
                "population.json": json.dumps(values.population, indent=2) + "\n",
                "run.sh": RUN_POPULATION,
            },
        },
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata(values, name, POPULATION),
            "spec": {
                "entrypoint": f"bash {CONFIG_FOLDER}/run.sh",
                "runtimeEnvYAML": yaml_text({"env_vars": {"JOB_ID": job_id}}),
                "submissionMode": "K8sJobMode",
                "backoffLimit": 2,  # new clusters
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": 300,
                "activeDeadlineSeconds": values.deadline_s,
                "rayClusterSpec": cluster,
                "submitterPodTemplate": submitter(values, preset, POPULATION),
            },
        },
    ]


def population_id(values: Values, preset: Preset) -> str:
    """The population's `job_id`, or a hash of request and model. A finished RayJob does not run again."""
    asked = [values.population, preset.model_path, preset.engine]
    return str(values.population.get("job_id") or f"{POPULATION}-{digest(asked)}")


def population_config(values: Values, preset: Preset, job_id: str) -> Manifest:
    """The Serve config: loopback, no keys, and a store that no other driver uses."""
    store = f"{values.population_store.rstrip('/')}/{job_id}"
    document = serve_config(values.model_copy(update={"store": store, "tls": Tls()}), preset)
    document["http_options"]["host"] = "127.0.0.1"
    for application in document["applications"]:
        access = application["args"] if application["name"] == BATCHES_APP else application["args"]["access"]
        del access["key_files"]
    return document


def multi_node(values: Values, preset: Preset) -> list[Manifest]:
    """One vLLM over `pipeline_parallel` nodes, by the Ray executor. The head has the first node's GPUs.

    Not a replica, whose workers share one node: populations use it as an external provider.
    """
    nodes = preset.pipeline_parallel
    (replicas,) = [app for app in serve_config(values, preset)["applications"] if app["route_prefix"] == "/"]
    options = {
        **replicas["args"]["engine"],
        "pipeline_parallel_size": nodes,
        "distributed_executor_backend": "ray",
        "host": "0.0.0.0",
    }
    del options["enable_prompt_tokens_details"], options["scheduling_policy"]  # only for populations
    return [
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata(values, values.named(MULTI_NODE), MULTI_NODE),
            "spec": {
                "entrypoint": " ".join(["vllm", "serve", *flags(options)]),
                "submissionMode": "K8sJobMode",
                "backoffLimit": 3,
                "shutdownAfterJobFinishes": True,
                "activeDeadlineSeconds": values.deadline_s,  # frees forgotten GPUs
                "submitterPodTemplate": submitter(values, preset, MULTI_NODE),
                "rayClusterSpec": {
                    "rayVersion": ray_version(),
                    "authOptions": {"mode": "token"},
                    "headGroupSpec": {
                        "rayStartParams": {"dashboard-host": "0.0.0.0"},
                        "template": multi_node_template(values, preset, "ray-head", MULTI_NODE),
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
            "metadata": metadata(values, values.named(MULTI_NODE), MULTI_NODE),
            "spec": {"selector": labels(values, MULTI_NODE), "ports": [{"name": "http", "port": HTTP_PORT}]},
        },
    ]


def multi_node_template(values: Values, preset: Preset, name: str, part: str) -> Manifest:
    """A pod that takes a whole node with its network adapters."""
    gpu = values.gpus[preset.gpu or ""]
    data, mounts = data_volume(values)
    resources = gpu_resources(values, preset, preset.tensor_parallel)
    if gpu.efa:
        # Pinned memory, reserved by EKS's EFA images.
        for amounts in resources.values():
            amounts |= {"vpc.amazonaws.com/efa": str(gpu.efa), "hugepages-2Mi": "10Gi"}
    ray = container(
        values, preset, name, resources=resources, mounts=mounts,
        ports=container_ports(HEAD_PORTS if name == "ray-head" else WORKER_PORTS),
        env=[
            {"name": "HOME", "value": HOME},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_PORT", "value": "20000"},
            {"name": "FI_PROVIDER", "value": "efa"},
            secret_variable(values, "VLLM_API_KEY", VLLM_SECRET, "api-key"),
        ],
    )  # fmt: skip
    # NCCL locks more memory than the default 64 KiB. Pod Security `baseline` refuses this; the namespace needs
    # `pod_security: privileged`.
    ray["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    spec = pod(
        values,
        [ray],
        account=WORKER_ACCOUNT,
        priority=ONLINE,
        volumes=(data,),
        **gpu_placement(preset, "on-demand"),
    )
    # One placement group: stages that are far apart wait for each other.
    component = {**labels(values), "app.kubernetes.io/component": MULTI_NODE}
    spec["affinity"] = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "topology.kubernetes.io/zone",
                    "labelSelector": {"matchLabels": component},
                }
            ]
        }
    }
    metadata = {"labels": {**labels(values, part), **component}, "annotations": {CAPABILITIES_REASON: EFA_REASON}}
    return {"metadata": metadata, "spec": spec}


def submitter(values: Values, preset: Preset, of: str) -> Manifest:
    """Submits the entrypoint and follows its log. Uses our image, since Ray's version must match."""
    submit = container(values, preset, "ray-job-submitter", resources=same_resources(1, 1))
    spec = pod(values, [submit], account=WORKER_ACCOUNT, priority=ONLINE, restartPolicy="Never")
    spec["terminationGracePeriodSeconds"] = 30
    return {"metadata": {"labels": labels(values, f"{of}-submitter")}, "spec": spec}
