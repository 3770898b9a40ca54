"""k8s/values.yaml: the one place that says what is deployed. All else is derived from it.

Knows presets, GPU types and images. Does not know manifests.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from serve_app.errors import BadSettings
from serve_app.fields import Frozen

VALUES = Path("k8s/values.yaml")
# The volume claim `serve-app-data`, and in it the weights that `models.download` brings.
DATA = "/data"
MODELS = f"{DATA}/models"


class Images(Frozen):
    """Repositories of the serving image, without tag: the tag is this project's version and the target."""

    cpu: str
    cuda: str


class Gpu(Frozen):
    """A type of GPU, and what a pod is given for each that it has."""

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
    """A model on hardware that it fits."""

    config: Path = Field(description="Serve config file that is deployed, relative to the repository's root")
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
        """What vLLM is told to load: the pre-downloaded folder, or the name of a model that is in the image."""
        return f"{MODELS}/{self.model}/{self.revision}" if self.revision else self.model


class Values(Frozen):
    """The file."""

    namespace: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    images: Images
    store: str = Field(min_length=1, description="of the jobs: a path on the volume claim, or a URL")
    population_store: str = Field(min_length=1, description="of a RayJob, whose driver must not meet the server's")
    drain_s: int = Field(ge=1, description="how long a replica that goes still answers what it has accepted")
    gpus: dict[str, Gpu]
    presets: dict[str, Preset]
    population: dict[str, Any] = Field(description="that a RayJob runs; a spec of `serve-app population submit --spec`")

    @model_validator(mode="after")
    def _known_gpus(self) -> Values:
        for name, preset in self.presets.items():
            if preset.gpu is not None and preset.gpu not in self.gpus:
                raise ValueError(f"presets.{name}.gpu: '{preset.gpu}' is not one of {', '.join(self.gpus)}")
        return self

    @classmethod
    def load(cls, path: Path = VALUES) -> Values:
        """Raises BadSettings that names the field."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise BadSettings(f"{path}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise BadSettings(f"{path} is not YAML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = [".".join(map(str, first["loc"]))] if first["loc"] else []
            raise BadSettings(": ".join([str(path), *place, first["msg"].removeprefix("Value error, ")])) from error

    def preset(self, name: str) -> Preset:
        """Raises BadSettings, naming those that there are."""
        if name not in self.presets:
            raise BadSettings(f"--preset '{name}' is unknown: use one of {', '.join(self.presets)}")
        return self.presets[name]

    def gpu(self, preset: Preset) -> Gpu | None:
        """The GPU type of a preset; None for one on CPU."""
        return self.gpus[preset.gpu] if preset.gpu else None

    def image(self, preset: Preset) -> str:
        """The serving image with its tag."""
        target: Literal["cuda", "cpu"] = "cuda" if preset.gpu else "cpu"
        return f"{getattr(self.images, target)}:{version('serve-app')}-{target}"

    @property
    def store_is_mounted(self) -> bool:
        return "://" not in self.store


def ray_version() -> str:
    """The pinned Ray, which the image has too."""
    return version("ray")
