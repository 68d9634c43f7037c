"""What both sides share: sessions, error translation, the catalog, COPY."""
