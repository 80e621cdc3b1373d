"""The transformers engine: the model in this process, one clip at a time; a clip's failure is its row's error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import loading, measure, prompt
from ..core.tokens import Modality, TokenLayout
from ..errors import error_fields
from ..models import layout
from ..tiny import foreign
from .asks import Ask, Begin, ignored
from .job import Job
from .read import Read, ahead
from .row import Row, row


class Local:
    """A model of transformers, with the method applied call by call."""

    def __init__(self, job: Job) -> None:
        """Loads the model. Raises `ModelError`."""
        self.job = job
        self.model, self.processor = loading.load(
            job.model, job.dtype, job.device, job.attention, **job.loading_options()
        )

    def answers(self, asks: Sequence[Ask], begin: Begin = ignored) -> Iterator[Row]:
        """A row for every ask, in their order, as each is there."""
        for each in ahead(self.job, asks, begin):
            yield self._answer(each)

    def _answer(self, read: Read) -> Row:
        if isinstance(read.clip, Exception):
            return row(read.ask, error=error_fields(read.clip))
        try:
            return self._measured(read)
        except Exception as error:
            failed = error_fields(error)
        # only here, behind the `except`: the error holds the frames of what failed, and they hold its tensors
        if self.model.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        return row(read.ask, error=failed)

    def _measured(self, read: Read) -> Row:
        job, start = self.job, time.perf_counter()
        inputs = prompt.build(
            self.processor,
            read.clip,  # type: ignore[arg-type]
            read.ask.question,
            use_audio=job.sound,
            system=job.system,
            max_pixels=job.max_pixels,
        )
        prepared = time.perf_counter() - start
        result = measure.answer(self.model, self.processor, inputs, job.method, job.max_new_tokens)
        if result.trace is None:
            who, kinds, keep = layout(self.model, inputs), (Modality.AUDIO, Modality.VIDEO), 1.0
        else:
            who, kinds, keep = result.trace.layout, result.trace.record.prunable, result.trace.keep
        return row(
            read.ask,
            answer=result.answer,
            new_tokens=result.new_tokens,
            prompt_tokens=int(who.valid[0].sum()),
            droppable_tokens=_droppable(who, kinds),
            keep=keep,
            warning=foreign(self.processor, read.clip, read.ask.question),  # type: ignore[arg-type]
            seconds={"read": read.seconds, "prepare": prepared, "answer": result.seconds},
        )


def _droppable(who: TokenLayout, kinds: Sequence[Any]) -> int:
    return int(who.droppable([Modality(kind) for kind in kinds])[0].sum())
