"""Policies: how many trajectories a question gets. Each rule is a small file; all are asked in the same way."""

from dps.policies.adaptive_consistency import AdaptiveConsistency
from dps.policies.base import Controller, DynamicK, FixedK, KRange, Policy, Rule, RuleK
from dps.policies.chance import RandomEscalation
from dps.policies.confidence import LowEntropy, SelfConfidence
from dps.policies.esc import EarlyStoppingConsistency
from dps.policies.in_run import InRun, in_run
from dps.policies.sprt import MixtureSPRT
from dps.policies.uab import BudgetAllocation

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

__all__ = ["RULES", "Controller", "DynamicK", "FixedK", "InRun", "KRange", "Policy", "Rule", "RuleK", "in_run"]
