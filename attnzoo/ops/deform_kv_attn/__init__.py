"""DAT's attention to sampled keys with a relative position bias: operator, reference, argument checks, fallback."""
