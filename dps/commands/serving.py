"""The command that serves."""

from __future__ import annotations

import socket
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dps.commands.options import parse, parser_of, spelt_out
from dps.commands.stores import check_controller_file
from dps.errors import InputError
from dps.extras import install
from dps.start import IMPORTS, stage, starting

if TYPE_CHECKING:
    from dps.serve.config import ServeConfig


def run_serve(arguments: list[str]) -> None:
    """``dps serve``: answer requests of the OpenAI protocol until SIGTERM or Ctrl-C."""
    from dps.model_config import ModelConfig, check_there
    from dps.sampler.settings import SamplerConfig
    from dps.serve.config import ServeConfig

    parser = parser_of("serve", ServeConfig)
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(SamplerConfig, "sampler")
    config, parsed = parse(parser, ServeConfig, arguments, fits="serve")
    built = parser.instantiate_classes(parsed)
    config.check()
    if config.policy is not None and any(word.startswith("--sampler.") for word in spelt_out(parser, arguments)):
        raise InputError("policy says what is sampled, and so does sampler: leave one of them out.")
    if config.controller is not None:
        check_controller_file(config.controller)
    lacking = [package for package in ("fastapi", "uvicorn", "prometheus_client") if find_spec(package) is None]
    if lacking:
        names = " ".join(lacking).replace("_", "-")
        raise InputError(f"dps serve needs {' and '.join(lacking)}: {install('serve', names)}.")
    check_there(built["model"])
    with _listening(config) as listening, starting("serve"):
        with stage(IMPORTS):
            from dps.serve.run import serve
        sampler = built["sampler"].check()
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
