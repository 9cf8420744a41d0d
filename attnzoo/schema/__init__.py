"""How the keys of a config are declared, read from YAML and merged. Knows no model and imports no torch."""
