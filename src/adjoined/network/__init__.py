"""The small network, and the twin of large and small over one set of parameters."""
