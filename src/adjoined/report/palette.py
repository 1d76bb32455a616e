"""Colours and marks, alike in the page and in the pictures: after Okabe and Ito, legible on white and on black.

No series is told by its colour alone: each has its own marker, dash or hatch.
"""

from typing import NamedTuple

__all__ = ["BLUE", "GREEN", "GREY", "LOSS_STYLE", "NETWORK_STYLE", "PURPLE", "RED", "SCALE", "Style", "steps"]

BLUE, RED, GREEN, PURPLE, GREY = "#1f84c4", "#d55e00", "#009e73", "#c06a9c", "#7f7f7f"
# In order, from blue to ochre as also a colour-blind eye sees it, and nowhere lost on black or on white.
SCALE = ("#3d6fb5", "#2c85a8", "#1f9590", "#2fa373", "#62a64c", "#8aa52a", "#a89b1a", "#c08f00")


class Style(NamedTuple):
    """Colour; plotly's and matplotlib's names of the same marker; dash; hatch of bars, in both."""

    colour: str
    symbol: str
    marker: str
    dash: str
    hatch: str


NETWORK_STYLE = {
    "base": Style(GREY, "square", "s", "dot", "/"),
    "large": Style(RED, "diamond", "D", "dash", "."),
    "small": Style(BLUE, "circle", "o", "solid", ""),
}
# Parts of the loss in metrics.jsonl: label, colour, dash.
LOSS_STYLE = {
    "ce": ("CE of large", RED, "solid"),
    "kl": ("KL(large ‖ small)", BLUE, "dash"),
    "small_ce": ("CE of small", GREEN, "dashdot"),
}


def steps(count: int) -> list[str]:
    """`count` colours in order, from blue to ochre."""
    last = len(SCALE) - 1
    return [SCALE[round(i * last / max(count - 1, 1))] for i in range(count)]
