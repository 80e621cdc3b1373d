"""What the layers' caches hold between segments, and who leaves when they are full.

What it is: per layer the prompt positions of its cache's entries, beside the `DynamicCache` that stores them. What it
is not: it runs no model. While segments come the cache's layers are plain ones, each as long as what it stores, and
positions are given explicitly; only `finish` says which logical prompt the cache stands for.

Shapes: P text entries before the clip, S tokens of a segment, Q rows of text behind them, E media entries of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cache import PrunedLayer

Rule = Callable[[Sequence[Tensor], Sequence[Tensor], int], list[Tensor]]


class Held:
    """The state of one stream's cache. media[l] (E_l,) long: the prompt positions of layer l's media entries."""

    def __init__(self, cache: Any, layers: int, before: int) -> None:
        self.cache, self.before = cache, before
        self.media = [torch.empty(0, dtype=torch.long) for _ in range(layers)]
        self.most = [0] * layers  # media entries that a layer's cache held at its fullest, while a segment ran
        self.worth: list[Tensor] = []  # per layer (E_l,), what its entries were worth to the latest segment's text

    def take(
        self, kept: Sequence[Tensor], start: int, tokens: int, *, evict: bool, scores: Sequence[Tensor] = ()
    ) -> None:
        """A segment of `tokens` media tokens at prompt position `start` has run: forget the rows behind it.

        kept[l] (K_l,): which of the segment's columns entered layer l, its text rows included. `evict`: every layer
        keeps only what entered the last one. scores[l] (P + E_l + K_l,), if there are: what each entry is worth.
        """
        self.worth = []
        final = kept[-1][kept[-1] < tokens]
        for index, layer in enumerate(self.cache.layers):
            entered = kept[index][kept[index] < tokens]
            rows = len(kept[index]) - len(entered)
            self.most[index] = max(self.most[index], len(self.media[index]) + len(entered))
            old = self.before + len(self.media[index])
            stays = torch.arange(old + len(entered))
            if evict:
                stays = torch.cat([stays[:old], old + torch.searchsorted(entered, final)])
            if evict or rows:
                self._keep(layer, stays)
            self.media[index] = torch.cat([self.media[index], start + (final if evict else entered)])
            if scores:
                self.worth.append(scores[index].cpu()[stays][self.before :])

    def shrink(self, hold: int, rule: Rule) -> None:
        """Bring every layer down to `hold` media entries, by what `take` was told of their worth."""
        for index, chosen in enumerate(rule(self.worth, self.media, hold)):
            if len(chosen) < len(self.media[index]):
                self._keep(self.cache.layers[index], torch.cat([torch.arange(self.before), self.before + chosen]))
                self.media[index] = self.media[index][chosen]

    def _keep(self, layer: Any, entries: Tensor) -> None:
        index = entries.to(layer.keys.device)
        layer.keys, layer.values = layer.keys.index_select(2, index), layer.values.index_select(2, index)

    def finish(self, length: int) -> None:
        """The cache stands for a prompt of `length` tokens, of which the last ones, all text, are stored whole."""
        for index, layer in enumerate(self.cache.layers):
            media, stored = self.media[index], layer.keys.shape[-2]
            behind = stored - self.before - len(media)
            positions = torch.cat([torch.arange(self.before), media, torch.arange(length - behind, length)])
            self.cache.layers[index] = PrunedLayer.adopt(
                layer, positions[None].to(layer.keys.device), length, padded=False
            )


def by_layer(scores: Sequence[Tensor], media: Sequence[Tensor], hold: int) -> list[Tensor]:
    """Each layer keeps the `hold` entries that it scores highest itself; of equals the earlier leaves first.

    A layer's cache is read by that layer's attention alone. docs/long.md has the rules that were tried beside it.
    """
    return [_highest(worth, hold) for worth in scores]


def _highest(worth: Tensor, n: int) -> Tensor:
    """The places of the n highest, ascending."""
    if len(worth) <= n:
        return torch.arange(len(worth))
    return torch.argsort(worth, stable=True)[len(worth) - n :].sort().values
