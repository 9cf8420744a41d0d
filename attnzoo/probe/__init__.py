"""Profiles: what attentions can do, from runs of `task: probe`."""
