"""The model of probes: one attention between an embedding and a head."""
