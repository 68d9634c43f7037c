"""Where a row goes and how it changes on the way. Pure: no I/O, no clock, no logger."""
