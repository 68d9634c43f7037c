"""The nouns that every floor shares: LSNs, tables, rows and changes. No I/O."""
