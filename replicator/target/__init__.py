"""What we do to the target: our state, the SQL that applies changes, indexes, sequences."""
