"""Which prompt positions each layer's cache holds between segments, and which entries leave when it is full.

`CacheIndex` keeps the positions beside the `DynamicCache` that stores keys and values; it runs no model. Until `finish`
the cache's layers are plain ones, each as long as what it stores, and positions are given explicitly; `finish` says
which logical prompt the cache stands for.

Shapes: P text entries before the clip, S tokens of a segment, Q rows of text behind them, E media entries of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.cache import PrunedLayer

Rule = Callable[[Sequence[Tensor], Sequence[Tensor], int], list[Tensor]]


class CacheIndex:
    """The state of one stream's cache. media[l] (E_l,) long: the prompt positions of layer l's media entries."""

    def __init__(self, cache: Any, layers: int, before: int) -> None:
        self.cache, self.before = cache, before
        self.media = [torch.empty(0, dtype=torch.long) for _ in range(layers)]
        self.most = [0] * layers  # media entries that a layer's cache held at its fullest, while a segment ran
        self.scores: list[Tensor] = []  # per layer (E_l,): attention of the latest segment's query rows to its entries

    def append(
        self, kept: Sequence[Tensor], start: int, tokens: int, *, final_only: bool, scores: Sequence[Tensor] = ()
    ) -> None:
        """A segment of `tokens` media tokens at prompt position `start` has run: remove the text rows behind it.

        kept[l] (K_l,): which of the segment's columns entered layer l, its text rows included. `final_only`: every
        layer keeps only what entered the last one. scores[l] (P + E_l + K_l,), if given: the score of each entry.
        """
        self.scores = []
        final = kept[-1][kept[-1] < tokens]
        for index, layer in enumerate(self.cache.layers):
            entered = kept[index][kept[index] < tokens]
            rows = len(kept[index]) - len(entered)
            self.most[index] = max(self.most[index], len(self.media[index]) + len(entered))
            old = self.before + len(self.media[index])
            stays = torch.arange(old + len(entered))
            if final_only:
                stays = torch.cat([stays[:old], old + torch.searchsorted(entered, final)])
            if final_only or rows:
                self._keep(layer, stays)
            self.media[index] = torch.cat([self.media[index], start + (final if final_only else entered)])
            if scores:
                self.scores.append(scores[index].cpu()[stays][self.before :])

    def evict(self, hold: int, rule: Rule) -> None:
        """Reduce every layer to at most `hold` media entries, by the scores that `append` was given."""
        for index, chosen in enumerate(rule(self.scores, self.media, hold)):
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
    return [_highest(layer, hold) for layer in scores]


def _highest(scores: Tensor, n: int) -> Tensor:
    """The indices of the n highest, ascending."""
    if len(scores) <= n:
        return torch.arange(len(scores))
    return torch.argsort(scores, stable=True)[len(scores) - n :].sort().values
