"""One sample as an input method sees it, without a model: clips of video and sound, cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch

from omnidrop.core.budget import DecoderShape, FirstToken, TokenCounts
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import InputView

SHAPE = DecoderShape(layers=4, hidden=8, heads=1, kv_heads=1, head_dim=8, mlp=24, vocabulary=9, bytes_per_value=2)
AUDIO, VIDEO = int(Modality.AUDIO), int(Modality.VIDEO)


def sample(
    clips: Sequence[tuple[int, int, int]],
    *,
    features: torch.Tensor | None = None,
    saliency: torch.Tensor | None = None,
    sounds: int = 10,
    grids: int = 2,
    width: int = 12,
    seed: int = 0,
) -> InputView:
    """clips: (frames, tokens a frame, audio tokens) each, one after another; in a chunk `grids` frames, then `sounds`
    audio tokens. A clip without frames or without sound is only the other. Features are in the order of the prompt.
    """
    rows: list[tuple[int, int, int, int]] = []  # modality, item, frame, chunk
    runs, base, items = [], 0, {AUDIO: 0, VIDEO: 0}
    for frames, tokens, heard in clips:
        mine = [(base + f // grids, VIDEO, f) for f in range(frames) for _ in range(tokens)]
        mine += [(base + a // sounds, AUDIO, -1) for a in range(heard)]
        mine.sort(key=lambda row: row[0])  # stable: in a chunk video before audio
        rows += [(kind, items[kind], frame, chunk) for chunk, kind, frame in mine]
        for kind, count, grid in ((VIDEO, frames * tokens, frames), (AUDIO, heard, 0)):
            if count:
                runs.append((kind, items[kind], count, grid))
                items[kind] += 1
        base = max(row[3] for row in rows) + 1
    modality, item, frame, chunk = torch.tensor(rows).T
    n, generator = len(rows), torch.Generator().manual_seed(seed)
    drawn, ranked = torch.randn(n, width, generator=generator), torch.rand(n, generator=generator)
    first = FirstToken(encoders=100 * n, whole=100 * n, newest=False)
    return InputView(
        modality=modality,
        item=item,
        frame=frame,
        chunk=chunk,
        features=drawn if features is None else features,
        question=torch.zeros(1, width),
        prompt_hash=seed,
        runs=runs,
        budget=TokenCounts(layers=SHAPE.layers, total=n, input_count=n, text=7, shape=SHAPE, first=first),
        max_chunk=base - 1,
        saliency=(ranked if saliency is None else saliency) * (modality == AUDIO),
    )


def without_content(view: InputView) -> InputView:
    """The same sample on a device that has no values: whoever reads one to decide a number, fails."""
    tensors = {spec.name: getattr(view, spec.name) for spec in fields(view)}
    return replace(view, **{name: t.to("meta") for name, t in tensors.items() if isinstance(t, torch.Tensor)})


SAMPLES = {
    "video with sound": [(6, 5, 30)],
    "three videos": [(4, 5, 20), (5, 3, 22), (2, 9, 10)],
    "silent video": [(7, 4, 0)],
    "sound": [(0, 0, 33)],
    "video and a recording": [(6, 4, 0), (0, 0, 25)],
    "recording, video, recording": [(0, 0, 12), (5, 4, 23), (0, 0, 7)],
    "one frame": [(1, 6, 10)],
    "one token a frame": [(9, 1, 41)],
    "sound ends first": [(8, 4, 13)],
    "long sound": [(2, 4, 47)],
}
