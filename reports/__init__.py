"""Reports: tables in, one HTML page and its figures out. Nothing is computed here."""
