"""Weights of other implementations under the names of this one."""
