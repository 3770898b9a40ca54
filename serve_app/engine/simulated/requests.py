"""Request models of the simulated HTTP application: the fields it obeys, with vLLM's names and bounds.

Other fields are ignored, as in vLLM. `RequestRefused` is a client's error.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve_app.openai.errors import ErrorAnswer

# vLLM's `max_logprobs`.
MOST_LOGPROBS = 20


class RequestRefused(Exception):
    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def refused(message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> RequestRefused:
    """The error for a wrong value."""
    return RequestRefused(ErrorAnswer(status=status, message=message, param=param, code=code))


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class StreamOptions(Body):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchema(Body):
    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's formats beyond `response_format`."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None


class Sampled(Body):
    """Fields that chat and completions share."""

    model: str | None = None
    n: Annotated[int, BeforeValidator(lambda n: 1 if n is None else n)] = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    include_stop_str_in_output: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    logprob_token_ids: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = Field(None, max_length=128)
    return_token_ids: bool | None = False

    @model_validator(mode="after")
    def _together(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise refused("Stream options can only be defined when `stream=True`.", "stream_options")
        if self.n > 1 and self.temperature == 0:
            raise refused("n must be 1 when using greedy sampling (temperature 0).", "n")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Function(Body):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function


class Named(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: Named


class Message(Body):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """Images and other parts become a hash."""
        if not isinstance(self.content, list):
            return self.content or ""
        return "\n".join(str(part["text"]) if "text" in part else _digest(part) for part in self.content)


def _digest(part: dict[str, Any]) -> str:
    return f"[{part.get('type')} {hashlib.sha256(repr(part).encode('utf-8', 'replace')).hexdigest()[:16]}]"


class ChatRequest(Sampled):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(0, ge=0, le=MOST_LOGPROBS)
    tools: list[Tool] | None = Field(None, min_length=1)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True

    @model_validator(mode="after")
    def _tools_and_logprobs(self) -> ChatRequest:
        for field in ("top_logprobs", "logprob_token_ids"):
            if getattr(self, field) and not self.logprobs:
                raise refused(f"when using `{field}`, `logprobs` must be set to true.", field)
        if self.tool_choice not in (None, "none") and not self.tools:
            raise refused("When using `tool_choice`, `tools` must be set.", "tool_choice")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
            raise refused(message, "tool_choice")
        return self


TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Prompts = str | list[TokenId] | list[str] | list[list[TokenId]]


class CompletionRequest(Sampled):
    prompt: Prompts
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = False
    suffix: str | None = None

    @model_validator(mode="after")
    def _as_vllm(self) -> CompletionRequest:
        if self.suffix:
            raise refused("suffix is not currently supported", "suffix")
        if self.max_tokens == 0 and not self.echo:
            raise refused("max_tokens must be at least 1, got 0.", "max_tokens")
        return self


class EmbeddingRequest(Body):
    model: str | None = None
    input: Prompts | None = None
    messages: list[Message] | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1, le=8192)

    @model_validator(mode="after")
    def _something(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise refused("Exactly one of `input` and `messages` must be given.", "input")
        return self


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _something(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refused("Exactly one of `prompt` and `messages` must be given.", "prompt")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[TokenId]


def prompt_list(prompts: Prompts, field: str) -> list[str | list[int]]:
    """One prompt an entry. Raises RequestRefused for none."""
    if isinstance(prompts, str):
        return [prompts]
    if not prompts or [] in prompts:
        raise refused(f"{field} must not be empty.", field)
    if isinstance(prompts[0], int):
        return [[one for one in prompts if isinstance(one, int)]]
    return [one for one in prompts if not isinstance(one, int)]


class TextFormat(Body):
    """The flat form of responses."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextConfig(Body):
    format: TextFormat | None = None


class FlatTool(Body):
    """A tool of responses. Other types run on OpenAI's servers."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatNamedTool(Body):
    type: Literal["function"]
    name: str


class ResponsesRequest(Body):
    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    background: bool | None = False
    max_output_tokens: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = True
    previous_response_id: str | None = None
    seed: int | None = None
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool = "auto"
    tools: list[FlatTool] = []
    top_p: float | None = Field(None, gt=0, le=1)
    user: str | None = None

    @model_validator(mode="after")
    def _nothing_is_stored(self) -> ResponsesRequest:
        if self.background:
            raise refused("The simulated engine stores no responses: background has no effect here.", "background")
        if self.previous_response_id:
            message = f"Response with id '{self.previous_response_id}' not found: the simulated engine stores none."
            raise refused(message, "previous_response_id", status=404)
        return self
