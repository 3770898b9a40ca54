"""Imports for the fork server (fork.py)."""

from contextlib import suppress
from importlib import import_module

MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.layers.quantization.online",
    "vllm.model_executor.layers.quantization.compressed_tensors.utils",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.v1.structured_output",
    "serve_app.engine.scheduler",
    "serve_app.engine.vllm",
)

for module in MODULES:
    with suppress(Exception):  # its user imports or reports a missing one
        import_module(module)
