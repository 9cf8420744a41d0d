"""Multi-scale deformable attention: operator, plain PyTorch reference, checks of its arguments."""
