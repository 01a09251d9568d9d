"""Data files: collected, fetched from afar, rewritten."""
