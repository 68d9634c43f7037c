"""Preflight: look at both sides before anything is changed, and say what is missing and how to mend it."""

from replicator.preflight.check import Check, Status
from replicator.preflight.plan import Plan, load_plan
from replicator.preflight.run import run_checks

__all__ = ["Check", "Plan", "Status", "load_plan", "run_checks"]
