"""What an axis is called: the module that owns it and its role; and the block that it belongs to."""

from collections import Counter
from collections.abc import Mapping

from adjoined.core.dims import Atom

__all__ = ["axis_names"]


def axis_names(
    atoms: list[Atom], owners: Mapping[Atom, list], roles: Mapping[Atom, str]
) -> dict[Atom, tuple[str, str]]:
    """Atom → (name, block): the modules that own it, what they have in common, and its role."""
    one_stream = sum(roles[a] == "stream" for a in atoms) == 1
    homes = {}
    for atom in atoms:
        paths = [key.split(".")[:-1] for key, _ in owners[atom]]
        many = roles[atom] == "stream" and not one_stream
        homes[atom] = _home(paths) if many else _common(paths) if roles[atom] != "stream" else []
    attended = Counter(
        ".".join(homes[a][: i + 1]) for a in atoms if roles[a] == "heads" for i in range(len(homes[a]))
    )
    seen: Counter[str] = Counter()
    out = {}
    for atom in atoms:
        home = homes[atom]
        block = home if roles[atom] == "stream" else _block(home, attended)
        name = ".".join([*home, roles[atom]])
        seen[name] += 1
        out[atom] = (name if seen[name] == 1 else f"{name}.{seen[name]}", ".".join(block))
    return out


def _block(home: list[str], attended: Mapping[str, int]) -> list[str]:
    """The innermost numbered module around `home`; of a list in a list, the outer one if it attends once."""
    ends = [i + 1 for i, part in enumerate(home) if part.rsplit("_", 1)[-1].isdigit()]
    if not ends:
        return home
    end = ends[-1]
    while end - 1 in ends and attended[".".join(home[: end - 1])] <= 1:
        end -= 1
    return home[:end]


def _home(paths: list[list[str]]) -> list[str]:
    """The innermost module that holds more than half of `paths`."""
    out: list[str] = []
    while True:
        nexts = Counter(p[len(out)] for p in paths if p[: len(out)] == out and len(p) > len(out))
        if not nexts or (most := nexts.most_common(1)[0])[1] * 2 <= len(paths):
            return out
        out.append(most[0])


def _common(paths: list[list[str]]) -> list[str]:
    out = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        out.append(parts[0])
    return out
