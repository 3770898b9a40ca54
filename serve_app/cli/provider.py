"""Provider options of every command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from serve_app.errors import BadSettings
from serve_app.settings import PROVIDERS

OWN = "own"
# Older option names, for `common.spelling`.
RENAMED = {"provider-url": "provider", "provider-model": "model", "provider-key-env": "api-key-env"}

ProviderName = Annotated[
    str, typer.Option("--provider", help=f"Who answers: {OWN} replicas, {', '.join(PROVIDERS)}, or an address.")
]
Model = Annotated[str, typer.Option("--model", help="The model that must answer; a provider's by its name there.")]
ApiKeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", help="Driver's environment variable with the provider's key.")
]
BatchRows = Annotated[int | None, typer.Option("--batch-rows", min=1, help="Rows a provider is given at once.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests open at a provider.")]
RequestsPerMinute = Annotated[float | None, typer.Option("--requests-per-minute", help="The provider's limit.")]
TokensPerMinute = Annotated[float | None, typer.Option("--tokens-per-minute", help="The provider's limit.")]


@dataclass(frozen=True)
class ProviderOptions:
    """Who answers. In a command with `@provider_options`, a parameter of this type is these options."""

    provider: ProviderName = OWN
    model: Model = ""
    api_key_env: ApiKeyEnv = None
    batch_rows: BatchRows = None
    concurrency: Concurrency = None
    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None

    def job_fields(self) -> dict[str, Any]:
        """See `job_fields`."""
        return job_fields(**asdict(self))


OWN_REPLICAS = ProviderOptions()


def provider_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command for typer, which reads signatures: its one `ProviderOptions` parameter becomes an option a field."""
    signature = inspect.signature(command, eval_str=True)
    options = inspect.signature(ProviderOptions, eval_str=True).parameters
    (taken,) = (name for name, one in signature.parameters.items() if one.annotation is ProviderOptions)
    flat = [
        option
        for name, one in signature.parameters.items()
        for option in (options.values() if name == taken else [one])
    ]

    @wraps(command)
    def with_options(**given: Any) -> None:
        said = {field.name: given.pop(field.name) for field in fields(ProviderOptions)}
        command(**given, **{taken: ProviderOptions(**said)})

    with_options.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    with_options.__annotations__ = {option.name: option.annotation for option in flat}
    return with_options


def job_fields(provider: str, model: str, **limits: Any) -> dict[str, Any]:
    """The job field `model` or `provider`. `limits` are fields of `spec.Provider`.

    Raises BadSettings for an unknown provider and for conflicting options.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if provider == OWN:
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise BadSettings(f"{flags}: only for an external --provider")
        return {"model": model} if model else {}
    base_url, key = address(provider)
    if not model:
        raise BadSettings("--model: name the provider's model")
    return {"provider": {"base_url": base_url, "model": model, "api_key_env": key, **given}}


def address(provider: str) -> tuple[str, str]:
    """A provider's base URL, and a known one's key variable. Raises BadSettings."""
    if provider not in PROVIDERS and not provider.startswith(("http://", "https://")):
        raise BadSettings(
            f"--provider '{provider}' is unknown: use {OWN}, {', '.join(PROVIDERS)}, or an address such as "
            "https://host/v1"
        )
    return PROVIDERS.get(provider, (provider, ""))


def price_fields(
    external: bool, replica_hour: float | None, input_price: float | None, output_price: float | None
) -> dict[str, Any]:
    """The job field `price`, if any. Raises BadSettings for an unused price: replicas cost time, providers tokens."""
    tokens = {"input_per_million_tokens": input_price, "output_per_million_tokens": output_price}
    said = {name: value for name, value in tokens.items() if value is not None}
    if external and replica_hour is not None:
        raise BadSettings(
            "--price: of a replica's hour, and an external provider has none: give --input-price and --output-price"
        )
    if not external and said:
        raise BadSettings("--input-price, --output-price: only for an external --provider; replicas cost --price")
    price = said if external else {"replica_hour": replica_hour} if replica_hour is not None else {}
    return {"price": price} if price else {}


InputPrice = Annotated[
    float | None, typer.Option("--input-price", min=0, help="Dollars for a million prompt tokens at the provider.")
]
OutputPrice = Annotated[
    float | None, typer.Option("--output-price", min=0, help="Dollars for a million generated tokens there.")
]
