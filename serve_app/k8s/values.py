"""The values file, which describes an installation.

Knows presets, GPU types, images and names. Does not know manifests. A file is merged over `DEFAULTS`.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from serve_app.errors import BadSettings
from serve_app.fields import Frozen
from serve_app.k8s.values_file.options import Alerts, ExternalSecrets, Oidc, Quota, Tls
from serve_app.k8s.values_file.reading import laid_over, problem, read, with_configs_beside

DEFAULTS = Path(__file__).with_name("installation") / "values.yaml"
VALUES = Path("k8s/values.yaml")  # in a checkout
# The volume claim's mount, with the downloaded weights.
DATA = "/data"
MODELS = f"{DATA}/models"
LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"  # DNS-1035, required by KubeRay
Way = Literal["server", "download", "vllm", "vllm-job", "population", "kernels"]


class Images(Frozen):
    """Where images come from. A reference without tag and digest gets this project's version and the target."""

    registry: str = Field("", pattern=r"^$|^[a-z0-9][-a-z0-9.:/_]*[a-z0-9]$", description="in front of cpu and cuda")
    cpu: str = Field(min_length=1)
    cuda: str = Field(min_length=1)
    redis: str = Field(min_length=1, description="with a tag or, better, a digest")
    busybox: str = Field(min_length=1, description="with a tag or, better, a digest")
    fluent_bit: str = Field(min_length=1, description="with a tag or, better, a digest")
    pull_secrets: tuple[str, ...] = Field((), description="names of Secrets in the namespace")

    def serving(self, target: Literal["cpu", "cuda"]) -> str:
        image = f"{self.registry}/{getattr(self, target)}".lstrip("/")
        pinned = "@" in image or ":" in image.rpartition("/")[2]
        return image if pinned else f"{image}:{version('serve-app')}-{target}"


class Storage(Frozen):
    """The volume claim with weights and jobs."""

    claim: str | None = Field(None, description="one that is there, in place of one that is made")
    storage_class: str | None = Field(None, description="null: the cluster's default")
    size: str = Field("10Gi", pattern=r"^[1-9][0-9]*(Gi|Ti)$")
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        "ReadWriteMany", description="ReadWriteOnce: all pods that mount it share a node, so on CPU alone"
    )
    prepare: bool = Field(False, description="a Job gives the folders to the serving user")


class Redis(Frozen):
    """Where a restarted head finds the cluster's state."""

    address: str | None = Field(
        None,
        pattern=r"^rediss?://[a-z0-9][-a-z0-9.]*:[0-9]+$",
        description="of a managed Redis or Valkey in the private networks, in place of one in the namespace",
    )

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2]) if self.address else 6379


class Ingress(Frozen):
    """How clients outside the cluster come in."""

    kind: Literal["alb", "gateway", "none"] = "none"
    host: str = Field("serve-app.example.com", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    gateway_class: str = "eg"
    issuer: str = Field("serve-app", description="cert-manager's ClusterIssuer, of a gateway's certificate")
    oidc: Oidc | None = Field(None, description="sign-in of people, at an ALB")

    @model_validator(mode="after")
    def _signs_in_at_alb(self) -> Ingress:
        if self.oidc and self.kind != "alb":
            raise ValueError(f"oidc: an ALB signs people in, and kind is {self.kind}; see docs/how-to/eks.md")
        return self


class Gpu(Frozen):
    """A type of GPU, and a pod's resources for each GPU."""

    memory_gib: int = Field(ge=1, description="of one GPU")
    instance_families: tuple[str, ...] = Field(min_length=1, description="of EC2, as g6")
    cpus: int = Field(ge=1)
    pod_memory_gib: int = Field(ge=1)
    efa: int = Field(0, ge=0, description="Elastic Fabric Adapters of a whole node; 0 where there are none")


class Replicas(Frozen):
    """How many replicas there are; Serve's autoscaler decides between the bounds."""

    min: int = Field(ge=0)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    @property
    def fixed(self) -> bool:
        return self.min == self.max


class Preset(Frozen):
    """A model and its hardware."""

    config: Path = Field(description="Serve config file, from the values file's folder or the repository's root")
    model: str = Field(min_length=1, description="prepared model, or hub name")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="commit of the hub's repository")
    gpu: str | None = Field(None, description="one of `gpus`; none: CPU")
    tensor_parallel: int = Field(ge=1)
    pipeline_parallel: int = Field(1, ge=1, description="above 1: one engine over so many nodes")
    replicas: Replicas
    engine: dict[str, Any] = Field(default_factory=dict, description="options of vLLM, over the config file's")

    @model_validator(mode="after")
    def _pinned(self) -> Preset:
        if "/" in self.model and self.revision is None:
            raise ValueError(f"revision is missing: {self.model} comes from a hub, where names move")
        return self

    @property
    def multi_node(self) -> bool:
        return self.pipeline_parallel > 1

    @property
    def model_path(self) -> str:
        """The `model` option for vLLM: the downloaded folder, or the name of a model in the image."""
        return f"{MODELS}/{self.model}/{self.revision}" if self.revision else self.model


class Values(Frozen):
    """The file."""

    name: str = Field(pattern=LABEL, max_length=27, description="of the installation; its objects' names begin with it")
    namespace: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63, description="of its objects")
    base: bool = Field(True, description="false: namespace, accounts, policies, Redis and data are another folder's")
    create_namespace: bool = Field(True, description="false where it is another's")
    pod_security: Literal["privileged", "baseline"] = Field("baseline", description="level that the namespace enforces")
    operator_namespace: str = Field(min_length=1, description="where KubeRay's operator is")
    monitoring_namespace: str = Field(min_length=1, description="where Prometheus is")
    private_cidrs: tuple[IPv4Network, ...] = Field(
        min_length=1, description="of nodes, load balancers and the API server"
    )
    monitoring: bool = Field(False, description="PodMonitors and rules, for Prometheus' operator")
    images: Images
    storage: Storage
    redis: Redis
    ingress: Ingress
    tls: Tls
    external_secrets: ExternalSecrets | None = Field(None, description="null: somebody makes the Secrets")
    quota: Quota | None = Field(None, description="of all pods of the namespace")
    alerts: Alerts | None = Field(None, description="a receiver of Alertmanager; needs `monitoring`")
    logs: bool = Field(False, description="a container beside Ray prints the session's log files, as JSON lines")
    run: dict[Way, str] = Field(description="ways to run, each with its preset, that `render --out` makes")
    store: str = Field(min_length=1, description="of the jobs: a path on the volume claim, or a URL")
    population_store: str = Field(min_length=1, description="of RayJobs; each has a folder of its own in it")
    store_role: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/\S+$",
        description="of the store, by IRSA; null: Pod Identity",
    )
    drain_s: int = Field(ge=1, le=3540, description="how long a replica that goes still answers; nodes wait 3600 s")
    deadline_s: int = Field(ge=1, description="a RayJob ends after so long, with its cluster")
    gpus: dict[str, Gpu]
    presets: dict[str, Preset]
    population: dict[str, Any] = Field(description="that a RayJob runs; a spec of `serve-app population submit --spec`")

    @model_validator(mode="after")
    def _known_names(self) -> Values:
        for name, preset in self.presets.items():
            if preset.gpu is not None and preset.gpu not in self.gpus:
                raise ValueError(f"presets.{name}.gpu: '{preset.gpu}' is not one of {', '.join(self.gpus)}")
        for way, name in self.run.items():
            if name not in self.presets:
                raise ValueError(f"run.{way}: preset '{name}' is unknown: use one of {', '.join(self.presets)}")
            if self.presets[name].multi_node and self.pod_security != "privileged":
                raise ValueError(
                    f"pod_security: is to be privileged, since run.{way} '{name}' locks memory for EFA (IPC_LOCK); "
                    "give it a namespace of its own"
                )
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Values:
        if self.tls.pods and self.ingress.kind == "gateway":
            raise ValueError("tls.pods: goes with ingress.kind alb or none; a Gateway here does not verify pods")
        return self

    @classmethod
    def load(cls, path: Path = VALUES) -> Values:
        """The file merged over the defaults. Raises BadSettings that names the field."""
        mine = {} if path == VALUES and not path.exists() else read(path)  # no checkout: defaults
        try:
            return cls.model_validate(laid_over(read(DEFAULTS), with_configs_beside(path, mine)))
        except ValidationError as error:
            raise BadSettings("; ".join(problem(path, one) for one in error.errors()[:5])) from error

    def preset(self, name: str) -> Preset:
        """Raises BadSettings that lists the known presets."""
        if name not in self.presets:
            raise BadSettings(f"--preset '{name}' is unknown: use one of {', '.join(self.presets)}")
        return self.presets[name]

    def gpu(self, preset: Preset) -> Gpu | None:
        """None on CPU."""
        return self.gpus[preset.gpu] if preset.gpu else None

    def image(self, preset: Preset) -> str:
        return self.images.serving("cuda" if preset.gpu else "cpu")

    def named(self, part: str) -> str:
        return f"{self.name}-{part}"

    def cluster_named(self, part: str) -> str:
        """A cluster-scoped name, unique among installations."""
        return f"{self.name if self.name == self.namespace else f'{self.namespace}.{self.name}'}-{part}"

    @property
    def claim(self) -> str:
        return self.storage.claim or self.named("data")

    @property
    def shares_node(self) -> bool:
        """Whether all pods with the claim need one node."""
        return self.storage.access == "ReadWriteOnce"

    @property
    def has_ray_service(self) -> bool:
        """Whether Ray Serve keeps the replicas, so the head needs fault tolerance."""
        return "server" in self.run and not self.presets[self.run["server"]].multi_node


def digest(document: Any) -> str:
    """Eight hex digits, for names of immutable objects. Of the JSON as Go writes it: a Helm chart makes it too."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def ray_version() -> str:
    return version("ray")


def json_schema() -> str:
    """JSON schema of a values file. Every field is optional."""
    schema = Values.model_json_schema()
    for part in (schema, *(schema["$defs"][name] for name in ("Images", "Storage", "Redis", "Ingress", "Tls"))):
        part.pop("required", None)
    schema["properties"]["$schema"] = {"type": "string"}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
