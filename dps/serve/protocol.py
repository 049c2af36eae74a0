"""Requests of the OpenAI protocol, read strictly: what is not honoured is refused, in the protocol's own form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from starlette.responses import JSONResponse

from dps.arguments import check_text
from dps.benchmarks.given import Style

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of the protocol that ask for nothing at these values, or at null, and are refused at others."""
HARMLESS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")
"""Fields that say nothing about the answer and are passed over."""
_WHY = {
    "top_p": "responses are drawn from the model's whole law; leave it out, or send a temperature for plain sampling",
    "top_logprobs": "only the log-probabilities of a response's own tokens are known; leave it out",
    "echo": "prompts are not scored; leave it out",
}


class Refused(Exception):
    """A request that is not answered: an HTTP status and the protocol's error object."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        """Say why."""
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the protocol's error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        headers |= {"Retry-After": "1"} if self.status in (429, 503) else {}
        headers |= {"Connection": "close"} if self.status in (408, 413) else {}  # more of the body may come
        return JSONResponse(self.body(), self.status, headers)


class StreamOptions(BaseModel):
    """What a stream has besides."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What requests of both endpoints may have."""

    model_config = ConfigDict(extra="forbid")
    model: str
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, strict=True)] | None = None
    n: Annotated[int, Field(ge=1, strict=True)] = 1
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    stop: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    alpha: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    k: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    num_mh_steps: Annotated[int, Field(ge=0, strict=True)] | None = None
    policy: str | list[str] | None = None
    style: Style | None = None
    repeat: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] | Literal["count"] | None = None
    responses: bool = False

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_honoured(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("Expected a JSON object.")
        check_text({"the request": data})
        kept = {name: value for name, value in data.items() if name not in HARMLESS and value is not None}
        for name in [name for name in kept if name in NEUTRAL]:
            value = kept.pop(name)
            if not any(type(value) in (type(ok), int, float) and value == ok for ok in NEUTRAL[name]):
                raise ValueError(f"{name} is not supported: {_WHY.get(name, 'leave it out')}.")
        return kept

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list):
            value = [each for each in value if each is not None]
        if isinstance(value, list) and not (len(value) <= 16 and all(value)):
            raise ValueError("Expected at most 16 stop strings, none of them empty.")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true.")
        return self


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatAsked(Asked):
    """A request to ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_limit(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "max_completion_tokens" not in data:
            return data
        rest = {name: value for name, value in data.items() if name != "max_completion_tokens"}
        limit = data["max_completion_tokens"]
        if limit is not None and rest.setdefault("max_tokens", limit) not in (None, limit):
            raise ValueError("max_tokens and max_completion_tokens differ: leave one of them out.")
        return rest if limit is None else rest | {"max_tokens": limit}

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, value: list[Message]) -> list[Message]:
        if value[-1].role != "user" or not value[-1].text.strip():
            raise ValueError("Expected the last message to be the user's, and not empty.")
        return value


class CompletionAsked(Asked):
    """A request to ``/v1/completions``."""

    prompt: str | list[str] | list[Annotated[int, Field(strict=True, ge=0)]] | list[list[int]]
    logprobs: int | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _own_only(cls, value: Any) -> Any:
        if value is False:
            return None
        if type(value) is not int or value != 0:
            raise ValueError("Expected logprobs of 0: only the log-probabilities of a response's own tokens are known.")
        return 0

    @field_validator("prompt")
    @classmethod
    def _some(cls, value: Any, info: ValidationInfo) -> Any:
        if not value or (isinstance(value, list) and not all(each or each == 0 for each in value)):
            raise ValueError("Expected a prompt, and none that is empty.")
        return value

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, as text or token ids."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[return-value,list-item]
