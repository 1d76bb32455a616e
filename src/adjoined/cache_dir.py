"""Where things lie that are not a run's."""

import os
from pathlib import Path

__all__ = ["FOLDER", "cache_folder"]

FOLDER = "ADJOINED_CACHE"


def cache_folder() -> Path:
    """$ADJOINED_CACHE, or `adjoined` in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adjoined"
    return Path(os.environ.get(FOLDER) or user).expanduser()
