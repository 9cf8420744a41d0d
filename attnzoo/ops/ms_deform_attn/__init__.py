"""Multi-scale deformable attention: operator, reference, argument checks."""
