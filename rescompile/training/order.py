"""The order of the images and their random numbers, as functions of seed and step, so that no state has to be saved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class Share:
    """The part of every batch that one process takes."""

    rank: int = 0
    world: int = 1

    def of(self, values: NDArray[_T]) -> NDArray[_T]:
        """This process's part of ``values`` [batch, ...]."""
        size = len(values) // self.world
        return values[self.rank * size : (self.rank + 1) * size]


@dataclass(frozen=True)
class Order:
    """An endless sequence of images: every image once, in a new order each time; a batch may span two rounds."""

    count: int
    batch_size: int
    seed: int
    _rounds: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every image was used."""
        return math.ceil(self.count / self.batch_size)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Images [batch] of ``step``."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rounds = places // self.count
        found = np.empty(self.batch_size, np.int64)
        for number in np.unique(rounds):
            mine = rounds == number
            found[mine] = self._round(int(number))[places[mine] % self.count]
        return found

    def draw(self, step: int) -> np.random.Generator:
        """Random numbers for the images of ``step``."""
        return np.random.default_rng((self.seed, 1, step))

    def _round(self, number: int) -> NDArray[np.int64]:
        if number not in self._rounds:
            for old in [each for each in self._rounds if each < number - 1]:
                del self._rounds[old]
            self._rounds[number] = np.random.default_rng((self.seed, 0, number)).permutation(self.count)
        return self._rounds[number]
