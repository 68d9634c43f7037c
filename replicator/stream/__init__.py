"""Phase two: the change stream, from the slot on the source to committed batches on the target."""
