"""DyCoke's temporal token merging (TTM), before the decoder (arXiv 2411.15024, CVPR 2025).

In every four frames, frame 2 is compared with 1 and frame 4 with 3, place by place, then 3 with 1; of each the tokens
of highest cosine leave. The paper drops 70 %. Frame 1 stays whole: a quarter of the video is the least that can remain.

Two published forms: in the paper, on video alone, audio stays whole (`media="video"`); in the omni papers' tables,
"DyCoke (V&A)", TTM thins both (`media="both"`): a "frame" of sound is one second, `audio_frame` tokens, and both lose
the same share of their later frames.

Differs from the authors' code: the drop rate is solved for the budget, with exact counts (the rest of the division goes
to frames spread over the clips); the last, shorter group is thinned too, where their loop leaves it whole; several
videos. No code of "DyCoke (V&A)" is known to us: the second as a frame is our choice, and what is left of a recording
after its last whole second stays. `audio_keep` below 1, ours too, keeps audio tokens of highest encoder attention. The
second half of the paper, dynamic pruning while decoding, is left out: it parks what it prunes, and saves no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import select
from ..core.budget import TokenCounts, whole
from ..core.select import quota
from ..core.tokens import Modality, Runs
from ..errors import SettingError
from .base import InputMethod, InputView, check_range, check_whole

MEDIA = ("video", "both")


@dataclass(frozen=True, kw_only=True)
class DyCoke(InputMethod):
    """TTM at an equal budget. Raises `SettingError`, also where what stays whole exceeds the budget: see `media`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        media: what TTM thins: "video", or "both" video and audio, as in the omni papers' tables
        audio_frame: audio tokens that count as one frame, 1 or more; a second is 25 in Qwen2.5-Omni, 13 in Qwen3-Omni
        audio_keep: share of audio tokens, in (0, 1]; more where thinned video alone would fall below the budget
    """

    reference: ClassVar[str] = "DyCoke (TTM), arXiv 2411.15024 (CVPR 2025)"

    media: str = "video"
    audio_frame: int = 25
    audio_keep: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.media not in MEDIA:
            raise SettingError(f"media is {self.media!r}; choose 'video' or 'both'")
        check_whole("audio_frame", self.audio_frame, 1)
        check_range("audio_keep", self.audio_keep, 0.0, 1.0, open_low=True)
        if self.media == "both" and self.audio_keep < 1.0:
            raise SettingError(
                f"media='both' and audio_keep={self.audio_keep} are two ways to thin audio; choose one: "
                "leave out audio_keep, or media"
            )

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,) if self.audio_keep < 1.0 and self.keep < 1.0 else ()

    def least(self, runs: Runs, budget: TokenCounts) -> int:
        audio = _tokens(runs, Modality.AUDIO)
        fixed = _tokens(runs, Modality.VIDEO) + (audio if self.media == "both" else whole(self.audio_keep, audio))
        return fixed - sum(size for clip in runs for size in self._later(clip))

    def choose(self, view: InputView, n: int) -> Tensor:
        audio, video = _tokens(view.runs, Modality.AUDIO), _tokens(view.runs, Modality.VIDEO)
        heard = audio if self.media == "both" else max(whole(self.audio_keep, audio), n - video)
        recordings = [tokens for modality, _, tokens, _ in view.runs if modality == Modality.AUDIO]
        stay = iter(quota.split(heard, recordings))
        later = [size for clip in view.runs for size in self._later(clip)]
        leave = iter(quota.split(heard + video - n, later))
        kept = []
        for clip in view.runs:
            modality, item, tokens, _ = clip
            places = view.places(modality, item, tokens)
            frames, size = self._frames(clip)
            if frames:
                drops = [next(leave) if frame % 4 else 0 for frame in range(frames)]
                thinned = select.thin_frames(view.features[places[: frames * size]], drops)
                places = torch.cat([places[thinned], places[frames * size :]])
            elif modality == Modality.AUDIO and heard < audio:
                assert view.saliency is not None
                places = places[select.keep_highest(view.saliency[places], tokens - next(stay))]
            kept.append(places)
        return torch.cat(kept).sort().values

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        if self.audio_keep == 1.0:
            return ""
        return f"audio_keep = {self.audio_keep:g}; the paper leaves audio whole"

    def _frames(self, clip: tuple[int, int, int, int]) -> tuple[int, int]:
        """(frames, tokens of each) in which TTM looks at a clip; (0, 0) where it does not."""
        modality, _, tokens, frames = clip
        if modality == Modality.VIDEO:
            return frames, tokens // max(frames, 1)
        return (tokens // self.audio_frame, self.audio_frame) if self.media == "both" else (0, 0)

    def _later(self, clip: tuple[int, int, int, int]) -> list[int]:
        """Tokens of every frame of the clip that may be thinned: all but the first of four."""
        frames, size = self._frames(clip)
        return [size for frame in range(frames) if frame % 4]


def _tokens(runs: Runs, kind: Modality) -> int:
    return sum(tokens for modality, _, tokens, _ in runs if modality == kind)
