"""The command that serves."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from dps.arguments import check_policy_alone
from dps.commands.options import given_groups, parse, parser_of
from dps.errors import InputError
from dps.extras import require
from dps.start import IMPORTS, stage, starting

if TYPE_CHECKING:
    from dps.serve.config import ServeConfig


def run_serve(arguments: list[str]) -> None:
    """``dps serve``: answer requests of the OpenAI protocol until SIGTERM or Ctrl-C."""
    from dps.decide.policy_file import checkpoint_path
    from dps.model_config import ModelConfig, check_there
    from dps.sampler.settings import SamplerConfig
    from dps.serve.config import ServeConfig

    parser = parser_of("serve", ServeConfig)
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(SamplerConfig, "sampler")
    config, parsed = parse(parser, ServeConfig, arguments, fits="serve")
    built = parser.instantiate_classes(parsed)
    config.check()
    given = given_groups(parser, arguments, "sampler")
    check_policy_alone(config.policy, given)
    if config.controller is not None:
        checkpoint_path(config.controller)
    require("dps serve", "serve", "fastapi", "uvicorn", "prometheus-client")
    check_there(built["model"])
    with _listening(config) as listening, starting("serve"):
        with stage(IMPORTS):
            from dps.serve.run import serve
        sampler = built["sampler"].check() if given or config.controller is None else None  # that of its harvest
        serve(config, built["model"], sampler, listening, say=lambda text: print(text, file=sys.stderr, flush=True))


def _listening(config: ServeConfig) -> socket.socket:
    """Return a socket that listens at the address; clients who come before the model is loaded wait."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"Expected an address to listen at, but {config.host}:{config.port} cannot be had ({error.strerror}): "
            "choose another host or port."
        ) from error
