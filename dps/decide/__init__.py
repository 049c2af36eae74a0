"""Decisions: how many trajectories a question gets. One room for training, replay and live runs."""

from dps.decide.policy import Controller, DynamicK, FixedK, KRange, Policy, Rule, RuleK
from dps.decide.rules.adaptive_consistency import AdaptiveConsistency
from dps.decide.rules.chance import RandomEscalation
from dps.decide.rules.confidence import LowEntropy, SelfConfidence
from dps.decide.rules.esc import EarlyStoppingConsistency
from dps.decide.rules.sprt import MixtureSPRT
from dps.decide.rules.uab import BudgetAllocation

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        AdaptiveConsistency(),
        EarlyStoppingConsistency(),
        MixtureSPRT(),
        LowEntropy(),
        SelfConfidence(),
        BudgetAllocation(),
        RandomEscalation(),
    )
}
"""The rules that need no training, with their published thresholds where there are any."""

__all__ = ["RULES", "Controller", "DynamicK", "FixedK", "KRange", "Policy", "Rule", "RuleK"]
