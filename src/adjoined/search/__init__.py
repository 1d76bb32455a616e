"""Differentiable search of each block's width, to a budget (DAN)."""

from adjoined.search.gates import Gate, find_gates
from adjoined.search.latency import Latency, measure_latency
from adjoined.search.objective import SearchObjective
from adjoined.search.run import SearchResult, make_objective, search

__all__ = [
    "Gate",
    "Latency",
    "SearchObjective",
    "SearchResult",
    "find_gates",
    "make_objective",
    "measure_latency",
    "search",
]
