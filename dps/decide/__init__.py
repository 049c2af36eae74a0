"""Decisions: how many trajectories a question gets. One room for training, replay and live runs."""

from dps.decide.policy import Controller, DynamicK, FixedK, KRange, Policy, Rule, RuleK
from dps.decide.rules import RULES

__all__ = ["RULES", "Controller", "DynamicK", "FixedK", "KRange", "Policy", "Rule", "RuleK"]
