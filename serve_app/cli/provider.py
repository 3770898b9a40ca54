"""Who answers: our own replicas, or an external OpenAI-compatible provider."""

from __future__ import annotations

from typing import Any

from serve_app.errors import BadSettings

OWN = "own"
# name: (base_url, environment variable of the driver that holds the key), as their documentation has them.
PROVIDERS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
}


def job_fields(provider: str, model: str, **limits: Any) -> dict[str, Any]:
    """The fields `model` or `provider` of a job. `limits` are fields of `driver.spec.Provider`; None is its default.

    Raises BadSettings for a provider that is neither known nor an address, and options that do not go together.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if provider == OWN:
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise BadSettings(f"{flags}: only for an external --provider")
        return {"model": model} if model else {}
    if provider not in PROVIDERS and not provider.startswith(("http://", "https://")):
        raise BadSettings(
            f"--provider '{provider}' is unknown: use {OWN}, {', '.join(PROVIDERS)}, or an address such as "
            "https://host/v1"
        )
    if not model:
        raise BadSettings("--model: name the provider's model")
    base_url, key = PROVIDERS.get(provider, (provider, ""))
    return {"provider": {"base_url": base_url, "model": model, "api_key_env": key, **given}}
