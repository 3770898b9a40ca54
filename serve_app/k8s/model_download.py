"""A Job that brings a preset's weights to the shared file system, once, before any GPU is paid for."""

from __future__ import annotations

from serve_app.k8s.pods import (
    HUB_SECRET,
    POPULATION_PRIORITY,
    STORE_ACCOUNT,
    Manifest,
    container,
    data_volume,
    labels,
    metadata,
    pod,
    same_resources,
)
from serve_app.k8s.values import MODELS, Preset, Values

PART = "model-download"


def model_download(values: Values, preset: Preset) -> list[Manifest]:
    """The Job; none for a model that is in the image."""
    if preset.revision is None:
        return []
    data, mount = data_volume(models_only=False)
    download = container(
        values, preset, "download", resources=same_resources(4, 16), mounts=(mount,),
        command=["python3", "-m", "serve_app.models.download"],
        args=[preset.model, preset.revision, "--to", MODELS],
        env=[
            {"name": "HOME", "value": "/home/serve"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": HUB_SECRET, "key": "token", "optional": True}}},
        ],
    )  # fmt: skip
    spec = pod(
        values,
        [download],
        account=STORE_ACCOUNT,
        priority=POPULATION_PRIORITY,
        volumes=(data,),
        restartPolicy="OnFailure",
    )
    spec["terminationGracePeriodSeconds"] = 30  # what is half there is gone on with
    # A Job cannot be changed once it is there: another revision is another name.
    name = f"{PART}-{preset.model.rpartition('/')[2].lower().replace('.', '-')}-{preset.revision[:8]}"
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(values, name, PART),
            "spec": {
                "backoffLimit": 20,  # each goes on where the last one stopped
                "activeDeadlineSeconds": 6 * 3600,
                "ttlSecondsAfterFinished": 24 * 3600,
                "template": {"metadata": {"labels": labels(PART)}, "spec": spec},
            },
        }
    ]
