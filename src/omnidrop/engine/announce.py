"""What the logger "omnidrop" says of each prompt: how many tokens were dropped, or why none was.

INFO: the prompt ran pruned, or unpruned as was asked for (no media in it, keep=1.0). WARNING: it holds media and tokens
were to be dropped, yet all of it ran through every layer: images that the method keeps, or too few tokens to drop one.
Counts are known on the host, so nothing waits for the GPU.
"""

from __future__ import annotations

import logging

from ..core.tokens import Modality
from ..core.trace_view import images_remark, kept_images
from .prefill import Prefill

log = logging.getLogger("omnidrop")
MEDIA = (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE)


def announce(prefill: Prefill) -> None:
    """Log one prompt (all of its rows), once `Prefill.enter` has decided its counts."""
    if not log.isEnabledFor(logging.WARNING):
        return
    total, method = sum(prefill.totals), prefill.method
    images = kept_images(prefill.layout, method.prunable)
    note = f". {images_remark(images, method.to_json())}" if images else ""
    if prefill.drops:
        entered, last = sum(prefill.entered), sum(prefill.entered) - sum(map(sum, prefill.plans))
        log.info(
            "pruned by %r: of %d media tokens %d enter layer 0 and %d the last layer%s",
            method, total, entered, last, note,
        )  # fmt: skip
    elif not bool(prefill.layout.among(MEDIA).any()):
        log.info("unpruned: the prompt holds no audio, video or images")
    elif getattr(method, "keep", None) == 1.0:
        log.info("unpruned, as asked for: %r keeps all of %d media tokens%s", method, total, note)
    else:
        why = f"{method!r} drops none of {total} media tokens" if total else f"{method!r} may drop none of its tokens"
        log.warning("unpruned: %s%s", why, note)
