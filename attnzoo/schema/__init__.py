"""Config schemas: declaring keys, reading them from YAML, merging. Imports neither torch nor any model."""
