"""A Job that brings a preset's weights to the shared file system, once, before any GPU is paid for."""

from __future__ import annotations

from serve_app.k8s.pods import (
    HUB_SECRET,
    POPULATION,
    STORE_ACCOUNT,
    Manifest,
    container,
    data_volume,
    labels,
    metadata,
    pod,
    same_resources,
    secret_variable,
)
from serve_app.k8s.values import DATA, MODELS, Preset, Values, digest

PART = "model-download"


def model_download(values: Values, preset: Preset) -> list[Manifest]:
    """The Job; none for a model that is in the image."""
    if preset.revision is None:
        return []
    data, mounts = data_volume(values, writable=DATA)
    download = container(
        values, preset, "download", resources=same_resources(4, 16), mounts=mounts,
        command=["python3", "-m", "serve_app.models.download"],
        args=[preset.model, preset.revision, "--to", MODELS],
        env=[
            {"name": "HOME", "value": "/home/serve"},
            secret_variable(values, "HF_TOKEN", HUB_SECRET, "token", optional=True),
        ],
    )  # fmt: skip
    spec = pod(
        values,
        [download],
        account=STORE_ACCOUNT,
        priority=POPULATION,
        volumes=(data,),
        restartPolicy="OnFailure",
    )
    spec["terminationGracePeriodSeconds"] = 30  # what is half there is gone on with
    template = {"metadata": {"labels": labels(values, PART)}, "spec": spec}
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(values, _name(values, preset, template), PART),
            "spec": {
                "backoffLimit": 20,  # each goes on where the last one stopped
                "activeDeadlineSeconds": 6 * 3600,
                # It stays when it is done: GitOps tools would make one that is gone anew.
                "template": template,
            },
        }
    ]


def _name(values: Values, preset: Preset, template: Manifest) -> str:
    """A Job cannot be changed once it is there: another revision, image or argument is another name."""
    end = f"-{digest(template)}"
    model = preset.model.rpartition("/")[2].lower().replace(".", "-").replace("_", "-")
    return f"{values.named('download')}-{model}"[: 63 - len(end)].rstrip("-") + end
