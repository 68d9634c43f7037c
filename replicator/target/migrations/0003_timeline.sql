-- Of the source, when applied_lsn was last found to be part of its history; NULL: not known.
ALTER TABLE replicator.checkpoint ADD COLUMN timeline bigint;
