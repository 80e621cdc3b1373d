"""What a live stream holds: encoded units under a limit of bytes and tokens, and how unlike each other they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.select.holding import RULES, leaving
from ..errors import SettingError
from ..methods.checks import check_whole
from ..models import Adapter
from .units import Unit, distance, summaries


class Holding:
    """The units that are held, oldest first. `most_bytes`: the most that was held, with the unit that just came.

    `rule`, `recent`, `guide`, `horizon`: as of `core.select.holding.leaving`.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        max_bytes: int,
        max_tokens: int,
        rule: str,
        recent: float,
        guide: float,
        horizon: float = float("inf"),
    ) -> None:
        check_whole("max_bytes", max_bytes, 1)
        check_whole("max_tokens", max_tokens, 1)
        if rule not in RULES:
            raise SettingError(f"rule is {rule!r}; choose one of {', '.join(map(repr, RULES))}")
        if not 0.0 <= recent <= 1.0 or not 0.0 <= guide < float("inf"):
            raise SettingError(f"recent={recent!r}, guide={guide!r}: recent is a share in [0, 1], guide is 0 or more")
        if not horizon > 0:
            raise SettingError(f"horizon is {horizon!r}; it must be seconds, above 0")
        self.max_bytes, self.max_tokens = max_bytes, max_tokens
        self.rule, self.recent, self.guide, self.horizon = rule, recent, guide, horizon
        self.units: list[Unit] = []
        self.relevance: dict[Unit, float] = {}  # to standing questions, of the units that these have seen
        self.most_bytes = 0
        self.left = 0  # units that were held, and are not any more
        self._adapter = adapter
        self._distances: dict[str, Tensor] = {}  # per encoder (n, n)

    @property
    def nbytes(self) -> int:
        return sum(unit.nbytes for unit in self.units)

    @property
    def tokens(self) -> int:
        return sum(unit.tokens for unit in self.units)

    def add(self, unit: Unit) -> None:
        """Hold a unit that has just come, and let others go until all fit.

        Raises `SettingError` where the limits are smaller than this one unit.
        """
        if unit.nbytes > self.max_bytes or unit.tokens > self.max_tokens:
            raise SettingError(
                f"a unit of {unit.seconds:g} s has {unit.tokens} tokens and {unit.nbytes} bytes; max_tokens="
                f"{self.max_tokens} and max_bytes={self.max_bytes} hold not even one: raise them, or lower max_pixels"
            )
        units = [*self.units, unit]
        if self.rule in ("novel", "novel_spread"):  # the others compare no contents
            self._compare(unit)
        self.most_bytes = max(self.most_bytes, sum(each.nbytes for each in units))
        gone = leaving(
            torch.tensor([each.start for each in units]),
            torch.tensor([[each.nbytes for each in units], [each.tokens for each in units]], dtype=torch.double),
            torch.tensor([self.max_bytes, self.max_tokens], dtype=torch.double),
            torch.stack(list(self._distances.values())) if self._distances else torch.zeros(0, len(units), len(units)),
            torch.tensor([self.relevance.get(each, 0.0) for each in units]),
            rule=self.rule,
            recent=self.recent,
            guide=self.guide,
            horizon=self.horizon,
        )
        stay = torch.tensor([i for i in range(len(units)) if i not in gone])
        self._distances = {name: each[stay][:, stay] for name, each in self._distances.items()}
        for place in gone:
            self.relevance.pop(units[place], None)
        self.left += len(gone)
        self.units = [units[i] for i in stay.tolist()]

    def _compare(self, unit: Unit) -> None:
        """Extend the distances by those of a new unit; units without such media are as far apart as can be."""
        mine = summaries(self._adapter, unit)
        others = [summaries(self._adapter, each) for each in self.units]
        n = len(others)
        for name in {*mine, *self._distances}:
            row = [distance(mine[name], each[name]) if name in mine and name in each else 2.0 for each in others]
            wider = torch.full((n + 1, n + 1), 2.0).fill_diagonal_(0.0)
            if name in self._distances:
                wider[:n, :n] = self._distances[name]
            wider[n, :n] = wider[:n, n] = torch.tensor(row)
            self._distances[name] = wider

    def note(self, shares: Mapping[Unit, float]) -> None:
        """What a standing question kept of each unit; of several questions the latest counts."""
        self.relevance = {u: share for u, share in {**self.relevance, **shares}.items() if u in self.units}

    def clear(self) -> None:
        """Hold nothing."""
        self.units, self.relevance, self._distances = [], {}, {}
