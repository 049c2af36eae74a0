"""Loads a model, opens the rows and serves until it is told to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from socket import socket
from typing import Any

import uvicorn

from dps.api import Asker, open_asker
from dps.benchmarks.given import given
from dps.config import ComputeConfig
from dps.decide import KRange
from dps.errors import InputError
from dps.model import load_model
from dps.model_config import ModelConfig
from dps.run.service import Service
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from dps.serve.app import make_app
from dps.serve.asking import STOP_ROOM
from dps.serve.config import ServeConfig

_ROOM = 1024
"""Tokens of a prompt that there is room for, where no context is set."""


def open_service(config: ServeConfig, model: ModelConfig | Any, sampler: SamplerConfig | None) -> tuple[Asker, Service]:
    """Return the policy that is served, and the service, which runs.

    Raises:
        InputError: If the settings do not fit together.
    """
    k = config.k
    if config.policy is not None:
        options: dict[str, Any] = {"policy": config.policy}
    else:
        if k is not None and config.controller is not None:
            k = KRange(min(2, k), 2, k)
        options = {"controller": config.controller, "k": k, "ladder": config.ladder or None}
        options |= {"arms": config.arms, "sampler": sampler}
    loaded = load_model(model) if isinstance(model, ModelConfig) else model
    names = {"style": config.style, "embedder": config.embedder, "feature_layer": config.feature_layer}
    asker = open_asker(loaded, **options, **names)
    base = asker.sampler
    positions = min(loaded.max_positions, config.context or base.max_new_tokens + _ROOM)
    if positions <= base.max_new_tokens:
        raise InputError(
            f"Expected a context above max_new_tokens, {base.max_new_tokens}, so that there is room for a prompt, got "
            f"{positions}: raise context or lower sampler.max_new_tokens."
        )
    most = replace(base, num_mh_steps=max(base.num_mh_steps, config.limits.mh_steps), reject_early=True)
    compute, room = ComputeConfig(rows=config.rows), positions - base.max_new_tokens
    engine = _with_stops(asker, compute, room, most)
    grader = given(config.style).grader if config.style is not None else asker.benchmark.grader
    service = Service(engine, grader, asker.prepare, most_waiting=config.limits.waiting, eager=config.eager)
    return asker, service


def _with_stops(asker: Asker, compute: ComputeConfig, room: int, most: SamplerConfig) -> Engine:
    """Open the rows, with room for clients' stop strings where the tokenizer allows that."""
    try:
        return asker.open_rows(compute, room, [most], stop_room=STOP_ROOM)
    except InputError:
        return asker.open_rows(compute, room, [most])


def serve(
    config: ServeConfig,
    model: ModelConfig,
    sampler: SamplerConfig | None,
    listening: socket,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; then what was asked is answered, and nothing new is taken."""
    asker, service = open_service(config, model, sampler)
    try:
        settings = {"log_level": "warning", "access_log": False, "timeout_keep_alive": 30, "server_header": False}
        grace = int(config.limits.request_s + 5)
        server = uvicorn.Server(
            uvicorn.Config(make_app(asker, service, config), timeout_graceful_shutdown=grace, **settings)
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"serve: {asker.model.name}, policy {asker.name}, {service.engine.rows} rows, at http://{shown}:{port}/v1")
        try:
            server.run([listening])
        except KeyboardInterrupt:
            say("serve: everything that was asked is answered")
    finally:
        service.close(finish=False)
