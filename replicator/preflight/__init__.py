"""Preflight: look at both sides before anything is changed, and say what is missing and how to mend it."""

from replicator.preflight.check import Check, Status
from replicator.preflight.run import run_checks

__all__ = ["Check", "Status", "run_checks"]
