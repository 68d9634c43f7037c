"""What we do to the source: publication, slot, logical messages, freeze."""
