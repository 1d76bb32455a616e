"""Whether a residual stream can be rotated, and what the rotation does to each tensor."""
