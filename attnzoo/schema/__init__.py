"""Config schemas: how keys are declared, read from YAML and merged. Knows no model and imports no torch."""
