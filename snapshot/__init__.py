"""Phase one: copy every table under one exported snapshot."""
