"""DAT's attention to sampled keys with a relative position bias: operator, reference, checks, blocks."""
