"""Settings of ``dps serve``, and their check; light, so that the command line answers at once."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import SecretStr

from dps.arguments import check_seed
from dps.benchmarks.given import check_style
from dps.config import AskConfig
from dps.decide.ladder import KRange
from dps.errors import InputError
from dps.sampler.settings import check_rows

KEY = "DPS_API_KEY"
"""The environment variable that has the key, so that no list of processes shows it."""


@dataclass(frozen=True)
class Limits:
    """What one client may take from the others."""

    waiting: int = 1024
    """Questions that may wait for rows; more are refused with 429."""
    requests: int = 1024
    """Requests that may be open at a time; more are refused with 429."""
    request_bytes: int = 1 << 20
    """Bytes of a request's body; more are refused with 413."""
    choices: int = 128
    """The most choices that a request may ask for: `n` of each prompt."""
    mh_steps: int = 50
    """The most Metropolis-Hastings steps per stage that a request may ask for."""
    body_s: float = 30.0
    """Seconds within which a request's body must have come."""
    request_s: float = 3600.0
    """Seconds within which a request must be answered."""

    def check(self) -> Limits:
        """Return self if usable, raise InputError otherwise."""
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"limits.{name} must be above 0, got {value:g}.")
        return self


@dataclass(frozen=True)
class ServeConfig(AskConfig):
    """`dps serve`: answer requests of the OpenAI protocol, all of them on the rows of one model."""

    k: int | None = None
    """Trajectories of each question (8 if not set), or the most that a controller may ask for."""
    style: str | None = None
    """How answers are read, and so voted on, where a request does not say: `arithmetic` (for the embedded model),
    `number` (for others), `math`, `text` or `open`: the whole response."""
    template: Literal["none", "style"] = "none"
    """`style` puts the words of the style around the user's last message; `none` leaves messages as they are, but for
    models without a chat template, which are always asked in the words of the style."""
    seed: int = 0
    """Names the random streams of requests without a seed."""
    repeats: Literal["count", "same"] = "count"
    """What a request with a seed gets whose prompt and seed came before, where its field `repeat` does not say: with
    `count` the next answer, as harnesses need that send one seed with all repeats; or the `same` one."""
    served_name: str | None = None
    """What the model is called in requests; the model's name if not set."""
    host: str = "127.0.0.1"
    """Address to listen at. One that others can reach needs a key."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    api_key: SecretStr | None = None
    """What clients must send as `Authorization: Bearer ...`; the environment variable DPS_API_KEY if not set."""
    rows: int | None = 64
    """Chains that run at a time, at least 8; null takes as many as memory allows."""
    context: int | None = None
    """Tokens of prompt and response together, at most; if not set, 1024 more than the longest response, or what the
    model has."""
    limits: Limits = field(default_factory=Limits)
    """What one client may take from the others."""

    @property
    def key(self) -> str | None:
        """The key that clients must send, None where they need none."""
        return (self.api_key.get_secret_value() if self.api_key else None) or os.environ.get(KEY) or None

    def check(self) -> ServeConfig:
        """Return self if usable, raise InputError otherwise."""
        check_rows(self.rows, "rows")
        check_seed(self.seed)
        self.limits.check()
        if self.style is not None:
            check_style(self.style)
        self.check_alone("k")
        if self.ladder and self.k is not None:
            raise InputError("k and ladder both say how far to go: leave one of them out.")
        if self.k is not None:
            KRange(1, 1, self.k).check()
        if not 0 <= self.port < 1 << 16:
            raise InputError(f"Expected a port from 0 to 65,535, got {self.port}.")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise InputError("Expected a key of printable ASCII characters without spaces: choose another.")
        if self.key is None and not is_loopback(self.host):
            raise InputError(
                f"Expected a key for the address {self.host}, which other machines may reach: set api_key or {KEY}, or "
                "listen at 127.0.0.1."
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
