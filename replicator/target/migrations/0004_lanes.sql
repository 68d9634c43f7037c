-- Whose copy dropped it: several slots may copy at once, and none builds what another is still filling. NULL: not known.
ALTER TABLE replicator.deferred_index ADD COLUMN slot text;
