"""In what order an epoch visits the rows of a split, and how that is cut into batches."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["Cut", "Local", "Repeated", "few_groups", "reach"]

# Pictures among which a streamed one is shuffled: at least so many, and those of at least so many groups.
REACH_PICTURES = 8192
REACH_GROUPS = 8


def reach(groups: Tensor) -> int:
    """Rows within which `Local` shuffles a split of these `groups` (N,): those that must be at hand at once."""
    rows = len(groups)
    return min(rows, max(REACH_PICTURES, -(-REACH_GROUPS * rows // len(groups.unique()))))


class Local(Sampler[int]):
    """Every row once, shuffled by `seed` alone, the rows of a group near each other, so that groups pass by.

    The groups are shuffled and laid end to end on a line. Each row is then drawn evenly from a stretch of `reach`
    rows around its group, folded back at the ends of the line: the density stays 1 everywhere, new groups come in
    one after another, and a group is done with `reach` rows after its first. A stretch as long as the line is a
    plain shuffle.
    """

    def __init__(self, groups: Tensor, seed: int) -> None:
        self.groups, self.seed = groups, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        rows, width = len(self.groups), reach(self.groups)
        if width == rows:
            yield from torch.randperm(rows, generator=generator).tolist()
            return
        _, group, sizes = self.groups.unique(return_inverse=True, return_counts=True)
        order = torch.randperm(len(sizes), generator=generator)
        middles = torch.empty(len(sizes), dtype=torch.float64)
        middles[order] = sizes[order].cumsum(0) - sizes[order].double() / 2
        places = middles[group] + width * (torch.rand(rows, generator=generator, dtype=torch.float64) - 0.5)
        places = places.abs()
        places = torch.where(places > rows, 2 * rows - places, places)
        yield from places.argsort(stable=True).tolist()


class Repeated(Sampler[int]):
    """Each row, and its copies behind it, as row + k · rows; timm's RepeatAugSampler before it is cut to length."""

    def __init__(self, order: Sampler[int], repeats: int, rows: int) -> None:
        self.order, self.repeats, self.rows = order, repeats, rows

    def __iter__(self) -> Iterator[int]:
        for row in self.order:
            yield from range(row, row + self.repeats * self.rows, self.rows)


class Cut(Sampler[list[int]]):
    """The share of this process in each batch of an epoch, from the `skip`-th on."""

    def __init__(
        self, order: Sampler[int], batch_size: int, count: int, skip: int, share: tuple[int, int]
    ) -> None:
        self.order, self.batch_size, self.count, self.skip, self.share = order, batch_size, count, skip, share

    def __len__(self) -> int:
        return max(self.count - self.skip, 0)

    def __iter__(self) -> Iterator[list[int]]:
        rows, (first, every) = iter(self.order), self.share
        for batch in range(self.count):
            whole = list(islice(rows, self.batch_size))
            if batch >= self.skip:
                yield whole[first::every]


def few_groups(groups: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The rows of groups drawn at random, of as few as hold `count` rows, though of `REACH_GROUPS` where there are."""
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=generator)
    enough = int((sizes[order].cumsum(0) < count).sum()) + 1
    return torch.isin(group, order[: max(enough, REACH_GROUPS)]).nonzero().flatten()
