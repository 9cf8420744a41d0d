"""Benchmarks of operators, attentions and whole models, each beside its peers in the same run."""
