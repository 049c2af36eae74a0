"""Where the numbers of a result come from, in words; the files beside the page have every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dps.analysis.words import listing, points_of, rungs
from dps.sampler.settings import SamplerConfig

_TOLD = ("alpha", "proposal_temperature", "block_size", "max_new_tokens", "num_mh_steps", "early_stop_min_tokens")
_DIGITS = 8
"""Of a fingerprint, which tell stores and models apart."""
Entry = Mapping[str, Any]


def provenance(result: Entry) -> list[tuple[str, str]]:
    """Return what a reader asks about a result's origin, and the answers."""
    of, clock = result["provenance"], result["clock"]
    arms = dict.fromkeys((name, arm(one)) for store in of["stores"] for name, one in store["arms"].items())
    told = [
        ("model", _model(of["model"])),
        ("benchmark", _benchmark(of["benchmark"])),
        *((f"arm {name}", said) for name, said in arms),
        *((f"store {store['folder']}", _store(store)) for store in of["stores"]),
    ]
    if clock:
        token, prompt = (1000 * clock[f"{of}seconds_per_token"] for of in ("", "prefill_"))
        each = f"{token:.3g} ms a generated token and {prompt:.3g} ms a prompt token"
        told.append(("clock", f"{each}, measured for {clock['store']} and used for all policies."))
    if of["controllers"]:
        told.append(("controllers", f"{listing(f'{name} from {at}' for name, at in of['controllers'].items())}."))
    if (settings := of["settings"]).get("folds"):
        told.append(
            (
                "replay",
                f"{settings['orders']} orders of the responses; thresholds chosen in {settings['folds']} folds with a "
                f"margin of {points_of(settings['margin'])}; {settings['resamples']:,} bootstrap resamples; seed "
                f"{settings['seed']}.",
            )
        )
    if of["software"]:
        told.append(("software", f"{listing(f'{name} {number}' for name, number in of['software'].items())}."))
    return told


def arm(settings: Entry) -> str:
    """Return what an arm draws, with whatever is not the default."""
    default, alpha = asdict(SamplerConfig()), settings.get("alpha", 1)
    draws = f"temperature {settings.get('proposal_temperature') or 1 / alpha:.3g}"
    if settings.get("num_mh_steps"):
        draws = (
            f"Power sampling with alpha {alpha:g}: {settings['num_mh_steps']} Metropolis-Hastings steps a stage, "
            f"stages of {settings.get('block_size')} tokens, proposals at {draws}"
        )
    else:
        draws = f"Samples at {draws}"
    other = [
        f"{name} {value}"
        for name, value in settings.items()
        if name not in _TOLD and name in default and value not in (None, default[name])
    ]
    return _joined(draws, f"at most {settings.get('max_new_tokens', 0):,} tokens", *other)


def _model(model: Entry) -> str:
    layers = f"{model['num_layers']} layers of width {model.get('hidden_size')}" if model.get("num_layers") else None
    parts = [model.get("name"), model.get("architecture"), layers, model.get("dtype")]
    embedder = f" Questions are embedded by {str(model['embedder']).split('@')[0]}." if model.get("embedder") else ""
    return f"{_joined(*parts, fingerprint=str(model.get('fingerprint', ''))[:_DIGITS])}{embedder}"


def _benchmark(benchmark: Entry) -> str:
    generated = benchmark.get("source") == "generated"
    origin = f"generated with seed {benchmark.get('seed')}" if generated else benchmark.get("source")
    digest = str(benchmark.get("sha256", ""))[:_DIGITS]
    return _joined(benchmark.get("name"), origin, split=benchmark.get("split"), digest=digest)


def _store(store: Entry) -> str:
    policy, rule = store["policy"], store["policy"].get("rule")
    climbs = rungs([*map(str, policy["ladder"])]) if policy.get("ladder") else policy.get("name")
    decides = None if policy.get("family") != "dynamic" else rule["name"] if rule else policy.get("name")
    threshold = None if policy.get("threshold") is None else f"{policy['threshold']:.3g}"
    told = {"decided by": decides, "threshold": threshold, "answers by": store["aggregator"], "seed": store["seed"]}
    return _joined(f"{store['num_questions']:,} questions", climbs, **told, fingerprint=store["fingerprint"][:_DIGITS])


def _joined(*parts: Any, **named: Any) -> str:
    """Return a sentence of what there is."""
    every = [*parts, *(f"{name} {value}" for name, value in named.items() if value not in (None, ""))]
    return f"{', '.join(str(part) for part in every if part)}."
