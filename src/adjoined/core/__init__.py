"""Axes, plans and twins: PyTorch and the standard library only."""
