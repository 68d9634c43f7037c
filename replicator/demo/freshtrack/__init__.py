"""FreshTrack Pro, a refrigeration monitoring product, in the shape of its target: schema, data, writers.

Both sides have the same 23 tables; the source adds Supabase's ``auth.users`` and row-level security, the
target splits ``sensor_readings`` into monthly partitions.
"""

from replicator.demo.freshtrack.schema import TABLES

__all__ = ["TABLES"]
