"""Compare source and target row by row through the routes, ID maps included; right while the stream runs."""

from replicator.verify.report import ForeignKeyReport, Report, TableReport
from replicator.verify.run import Progress, verify

__all__ = ["ForeignKeyReport", "Progress", "Report", "TableReport", "verify"]
