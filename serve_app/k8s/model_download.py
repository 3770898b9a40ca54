"""A Job that downloads a preset's weights before any GPU node starts."""

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
    """The Job; none for a model in the image."""
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
    spec["terminationGracePeriodSeconds"] = 30  # an interrupted download resumes
    template = {"metadata": {"labels": labels(values, PART)}, "spec": spec}
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(values, _name(values, preset, template), PART),
            "spec": {
                "backoffLimit": 20,  # each retry resumes
                "activeDeadlineSeconds": 6 * 3600,
                # No TTL: GitOps tools would recreate a deleted Job.
                "template": template,
            },
        }
    ]


def _name(values: Values, preset: Preset, template: Manifest) -> str:
    """Has a hash, as Jobs are immutable: a new revision, image or argument is a new Job."""
    end = f"-{digest(template)}"
    model = preset.model.rpartition("/")[2].lower().replace(".", "-").replace("_", "-")
    return f"{values.named('download')}-{model}"[: 63 - len(end)].rstrip("-") + end
