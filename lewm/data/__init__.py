"""Episode files, clips cut from them, and the collection of new ones."""
