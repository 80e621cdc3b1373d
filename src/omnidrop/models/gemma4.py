"""Gemma 4 (E2B, E4B and larger): images, video and sound; sliding and full layers; the last layers may share keys.

Class: transformers `Gemma4ForConditionalGeneration`. A checkpoint may lack the audio or the vision encoder.

Shared keys. The last `num_kv_shared_layers` layers read the keys and values of the last earlier layer of their kind.
Two readings of a drop behind that owner are consistent; here a sharing layer sees all that its owner holds, so keys and
values of a token last as long as the owner's cache, with a cache and without one. Nothing is dropped behind the last
owner: in generation only the newest token goes through the sharing layers at all, so nothing would be saved. `keep`
counts the layers that have keys of their own, and `Trace.kept` ends with them.

Time. Frames of a video have their time as text before them, which ids do not tell without a tokenizer; the layout
counts one second a frame. It sorts tokens into chunks of 2 s, which only temporal diversity reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core import score
from ..core.budget import LayerShape
from ..core.tokens import RECORDING, TWO_GRIDS, MediaSizes, Vocabulary
from ..errors import InputError, ModelError
from .base import Adapter, AudioEncoder, Decoder, PromptFormat, VisionEncoder
from .decoder import FULL, SLIDING
from .side_inputs import along, left_out, rows

TOKENS_PER_SECOND = 25.0  # of sound: 40 ms each
SECONDS_PER_FRAME = 1.0


class Gemma4Decoder(Decoder):
    """Queries and keys are normed, then turned by the table of the layer's kind. Values are normed as well."""

    side_inputs = MappingProxyType({"position_ids": along(-1), "per_layer_inputs": rows})
    layer_side_inputs = MappingProxyType(
        {"position_embeddings": along(-2), "position_ids": left_out, "per_layer_input": rows}
    )
    position_axes = 1
    plain_keys = False

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_norm

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_norm

    def layer_shape(self, layer: int) -> LayerShape:
        """Full layers may have other heads, and one projection for keys and values; sharing ones a wider MLP."""
        text, owner = self.thinker.config.text_config, self.owner(layer)
        own = text.per_layer_config[layer]
        wider = 2 if text.use_double_wide_mlp and owner != layer else 1
        mlp = 3 * wider * text.intermediate_size + 2 * (getattr(text, "hidden_size_per_layer_input", None) or 0)
        if getattr(text, "enable_moe_block", False):  # beside the dense MLP
            mlp += 3 * text.top_k_experts * text.moe_intermediate_size + text.num_experts
        return LayerShape(
            head_dim=own.head_dim,
            kv_heads=own.num_key_value_heads,
            mlp=mlp,
            projections=1 if text.attention_k_eq_v and self.kinds[layer] == FULL else 2,
            window=self.window if self.kinds[layer] == SLIDING else None,
            owner=None if owner == layer else owner,
        )


class Gemma4Audio(AudioEncoder):
    """Mel frames / 4 by convolution; attention to a few frames around, whose weights the attention itself returns.

    `sizes`: (recordings, mel frames) bool, False on padding.
    """

    sizes_parameter = "attention_mask"
    item_dim = None
    attention_parameters = ()
    attention_attributes = ("chunk_size", "max_past_horizon", "context_size")
    lean = frozenset()

    @property
    def projections(self) -> Mapping[str, nn.Module]:
        return {"attended": self.attention}

    @staticmethod
    def mel_window(audio: Any) -> int:
        return 1  # every frame sees its own neighbours: there are no windows to cut at

    @property
    def window_tokens(self) -> int:
        return 0

    def token_counts(self, mel_frames: Tensor) -> list[int]:
        return frames_of(mel_frames).sum(-1).tolist()

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        raise AssertionError("`received` reads the weights that the attention returns")

    def received(self, passes: Sequence[Mapping[str, Any]], sizes: Tensor, span: str | None) -> Tensor:
        """Sums over the frames that are no padding, means over heads. Raises `ModelError` for a whole recording."""
        if span == RECORDING:
            raise ModelError(
                "this method ranks sound by attention over whole recordings, and Gemma 4's audio encoder attends to "
                "the few frames around each: use a method that ranks otherwise (`omnidrop methods` lists them)"
            )
        valid = frames_of(sizes)
        return torch.cat([self._received(given["attended"][1], valid) for given in passes])

    def _received(self, weights: Tensor, valid: Tensor) -> Tensor:
        """weights (N, H, blocks, chunk, context), valid (N, T) bool -> (valid frames,)."""
        attention, (recordings, frames) = self.attention, valid.shape
        blocks, chunk, context = weights.shape[2:]
        asking = nn.functional.pad(valid, (0, blocks * chunk - frames)).view(recordings, blocks, chunk, 1)
        given = (weights.float().mean(1) * asking.to(weights.device)).sum(2)  # (N, blocks, context)
        first = torch.arange(blocks, device=given.device)[:, None] * chunk  # a block's context begins before it
        place = (first + torch.arange(context, device=given.device)).flatten().expand(recordings, -1)
        total = given.new_zeros(recordings, blocks * chunk + context)
        total.scatter_add_(1, place, given.flatten(1))
        start = attention.max_past_horizon
        return total[:, start : start + frames][valid.to(total.device)]

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        return received


class Gemma4Vision(VisionEncoder):
    """Full attention inside a picture of padded patches; a token pools a square of patches by their positions.

    `sizes`: (pictures, patches, 2), column and row of each patch, -1 on padding. Every frame is a picture.
    """

    input_parameter, sizes_parameter = "pixel_values", "pixel_position_ids"
    item_dim = None
    attention_parameters = ("position_ids", "position_embeddings")
    lean = frozenset()

    @property
    def module(self) -> Any:
        return self.backbone.vision_tower

    @property
    def attention(self) -> Any:
        return self.module.encoder.layers[-1].self_attn

    @property
    def projections(self) -> Mapping[str, nn.Module]:
        return {"queries": self.attention.q_norm, "keys": self.attention.k_norm}

    @property
    def patches_per_token(self) -> int:
        return self.config.vision_config.pooling_kernel_size**2

    def queries_keys(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of the patches that are no padding. The first half of a head is turned by columns, the second by rows."""
        real = (given["windows"] != -1).all(-1)
        cos, sin = (table[real].float() for table in given["rotary"])

        def turned(x: Tensor) -> Tensor:
            x = x[real].float().transpose(0, 1)  # (heads, T, width)
            halves = zip(*(each.chunk(2, dim=-1) for each in (x, cos, sin)), strict=True)
            return torch.cat([score.rotate(*half) for half in halves], dim=-1)

        queries, keys = turned(given["queries"]), turned(given["keys"])
        return queries, keys.repeat_interleave(queries.shape[0] // keys.shape[0], dim=0)

    def spans(self, sizes: Tensor, span: str | None) -> list[int]:
        if span == TWO_GRIDS:
            raise ModelError(
                "this method ranks video by attention over two frames at once, whose patches Gemma 4 numbers alike: "
                "use a method that ranks otherwise (`omnidrop methods` lists them)"
            )
        return (sizes != -1).all(-1).sum(-1).tolist()

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        side, real = self.config.vision_config.pooling_kernel_size, (sizes != -1).all(-1)
        column, row = (sizes // side).unbind(-1)
        across = (sizes[..., 0].amax(-1, keepdim=True) + 1) // side
        tokens = real.sum(-1) // side**2
        token = row * across + column + (tokens.cumsum(0) - tokens)[:, None]
        pooled = received.new_zeros(int(tokens.sum()))
        return pooled.index_add_(0, token[real].to(received.device), received / side**2)


def frames_of(mel_mask: Tensor) -> Tensor:
    """(recordings, mel frames) bool -> (recordings, encoder frames) bool: two convolutions of stride 2."""
    return mel_mask[:, ::2][:, ::2].bool()


class RunsPrompt(PromptFormat):
    """Every frame and image is a run of placeholders between its marks, and so is every recording."""

    audio_rate = TOKENS_PER_SECOND

    def frames_per_video(self, argument: Callable[[str], Any]) -> Any:
        """Frames of each video, where an argument tells; None elsewhere."""
        return argument("num_frames_per_video")

    def recordings(self, argument: Callable[[str], Any]) -> list[int] | None:
        """Tokens of each recording, where arguments tell; None elsewhere."""
        mask = argument("input_features_mask")
        if mask is None:
            return None
        return self.audio.token_counts(mask) if self.audio else mask.sum(-1).tolist()

    def missing(self, argument: Callable[[str], Any]) -> str | None:
        """Positions simply count: nothing is lost without a mask."""
        return None

    def sizes_of(self, inputs: Mapping[str, Any]) -> MediaSizes:
        return self.sizes_by_runs(inputs["input_ids"], inputs.get)

    def sizes_by_runs(self, input_ids: Tensor, argument: Callable[[str], Any]) -> MediaSizes:
        """Frames, images and recordings are the runs in the ids; which frames make a video, the arguments tell.

        Raises `InputError` where they do not fit.
        """
        words = self.vocabulary_of(argument)
        runs = [run for row in input_ids.tolist() for run in runs_of(row, words.media)]
        frames = [length for token, length in runs if token == words.video]
        sounds = [length for token, length in runs if token == words.audio]
        if sounds and (tokens := self.recordings(argument)) is not None and sounds != tokens:
            raise InputError(
                f"the prompt has recordings of {sounds} tokens, and input_features of {tokens}: build text and "
                "media with the same call of the model's processor (beams and several return sequences reorder the "
                "recordings of a prompt that has several; ask for one)"
            )
        videos = split_frames(frames, self.frames_per_video(argument), argument("mm_encoder_outputs"))
        return MediaSizes(
            video_frames=[len(video) for video in videos],
            video_tokens_per_frame=[video[0] for video in videos],
            video_seconds_per_frame=[SECONDS_PER_FRAME] * len(videos),
            image_tokens=[length for token, length in runs if token == words.image],
            audio_tokens=sounds,
            audio_tokens_per_second=self.audio_rate,
        )


class Gemma4Prompt(RunsPrompt):
    token_fields = ("audio_token_id", "video_token_id", "image_token_id", "boi_token_id", "eoi_token_id")

    @property
    def vocabulary(self) -> Vocabulary:
        config, end_of_turn = self.config, set[int]()
        for holder in (self.thinker.generation_config, config, config.text_config):
            ids = getattr(holder, "eos_token_id", None)
            end_of_turn |= set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        closings = [config.eoi_token_id, getattr(config, "eoa_token_index", None)]
        return Vocabulary(
            audio=config.audio_token_id,
            video=config.video_token_id,
            image=config.image_token_id,
            closings=frozenset(token for token in closings if token is not None),
            end_of_turn=frozenset(end_of_turn),
        )


def runs_of(ids: Sequence[int], tokens: Sequence[int]) -> list[tuple[int, int]]:
    """(token, length) of every run of one of `tokens` in a row of ids."""
    return [(token, len(list(run))) for token, run in groupby(ids) if token in tokens]


def split_frames(frames: Sequence[int], per_video: Any, encoded: Any) -> list[list[int]]:
    """Tokens of each frame of a batch -> the same, video by video.

    `per_video` (videos,): frames of each; or `encoded`: what `generate` has encoded ahead, with one tensor (tokens, D)
    for each video as `pooler_output`. Copies of a prompt (beams) hold the same videos. Raises `InputError`.
    """
    if not frames:
        return []
    if per_video is not None:
        wanted, weights = [int(n) for n in per_video], [1] * len(frames)
    else:
        ahead = (encoded or {}).get("video")
        wanted, weights = [len(video) for video in ahead.pooler_output] if ahead is not None else [], list(frames)
    videos: list[list[int]] = []
    left = list(zip(frames, weights, strict=True))
    for total in wanted * (sum(weights) // max(sum(wanted), 1)):
        video = []
        while left and total > 0:
            tokens, weight = left.pop(0)
            video.append(tokens)
            total -= weight
        videos.append(video)
    if left or not all(len(set(video)) == 1 for video in videos):
        raise InputError(
            f"the prompt holds {len(frames)} runs of video placeholders, of {sorted(set(frames))} tokens, and the "
            "video inputs tell other frames: build text and media with the same call of the model's processor"
        )
    return videos


UNSTREAMED = "its sliding layers remember a window of entries, and a second segment's times would begin anew"


class Gemma4(Adapter):
    thinkers = ("Gemma4ForConditionalGeneration",)
    model_types = ("gemma4",)
    processor = "Gemma4Processor"
    since = "5.23"
    unstreamed = UNSTREAMED
    thinker_parameters = ("input_features_mask", "num_frames_per_video", "mm_encoder_outputs")
    decoder_class, audio_class, vision_class = Gemma4Decoder, Gemma4Audio, Gemma4Vision
    prompt_class = Gemma4Prompt
