"""The soak: rounds of a whole replication under live writers, faults of all kinds at random moments, and comparisons.

``python -m tests.faults.soak --minutes 20 --seed N``; see `tests.faults.soak.run`.
"""
