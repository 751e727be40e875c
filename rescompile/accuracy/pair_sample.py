"""A random sample of pairs of outputs, for plots."""

from __future__ import annotations

import numpy as np

from rescompile.metrics import Logits


class PairSample:
    """Draws pairs evenly from a stream: each gets a random key, and those with the smallest keys stay.

    The draw is seeded, and does not depend on the sizes of the batches.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._random = np.random.default_rng(0)
        self._keys = np.empty(0)
        self._pairs = np.empty((0, 2), np.float32)

    def update(self, reference: Logits, engine: Logits) -> None:
        """Let the outputs of a batch take part in the draw."""
        fresh = np.stack([reference.ravel(), engine.ravel()], axis=1).astype(np.float32)
        keys = np.concatenate([self._keys, self._random.random(len(fresh))])
        kept = np.argsort(keys, kind="stable")[: self._capacity]
        self._keys, self._pairs = keys[kept], np.concatenate([self._pairs, fresh])[kept]

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """The pairs drawn so far: (reference, engine)."""
        return tuple((float(reference), float(engine)) for reference, engine in self._pairs)
