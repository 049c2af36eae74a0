"""Decisions: how many trajectories a question gets. One room for training, replay and live runs."""

from dps.decide.ladder import KRange, Ladder, Rung
from dps.decide.policy import Controller, DynamicK, FixedK, Policy, Rule, RuleK
from dps.decide.rules import RULES

__all__ = ["RULES", "Controller", "DynamicK", "FixedK", "KRange", "Ladder", "Policy", "Rule", "RuleK", "Rung"]
