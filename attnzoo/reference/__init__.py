"""The keys of experiment files: a JSON Schema for editors, and a page for the docs."""
