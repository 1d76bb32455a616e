class Killed(Exception):
    """Stands for what no program survives."""
