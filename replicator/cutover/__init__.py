"""The cutover: writers stopped, the last change applied, both sides compared, the target handed over."""

from replicator.cutover.journal import Progress, load_steps
from replicator.cutover.report import CutoverRefused, CutoverReport, Gate, StepRecord
from replicator.cutover.run import abort, run_cutover
from replicator.cutover.steps import Verification

__all__ = [
    "CutoverRefused",
    "CutoverReport",
    "Gate",
    "Progress",
    "StepRecord",
    "Verification",
    "abort",
    "load_steps",
    "run_cutover",
]
