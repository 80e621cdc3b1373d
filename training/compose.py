"""Stage 2's batches: clips and questions of the task, composed from cached chunk features.

One sequence a clip, exactly as the processor lays it out, followed by many question blocks that do not see each other
and share positions, with the masks and targets of the recipe.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from omnidrop_lab.needle.levels import LEVELS, Clip
from omnidrop_lab.needle.task import ATTRIBUTES, LONGEST, MODALITY, SEQUENCES, SPOKEN, TIMES, Question

from training import build
from training.chunks import EMPTY, labels_of

WEIGHTS = {
    "video": 2.5, "audio": 2.5, "joint": 3.5, "time": 2.5, "order": 2.0, "list": 2.0, "count": 0.7, "none": 1.0,
    "transcribe": 2.0, "caption": 2.0,
}  # fmt: skip
IGNORE = -100
ALOUD = 0.25  # share of spoken questions among those of the types that may be
SAID = LONGEST + 1  # tokens of the longest answer, its end included


class Speech(Protocol):
    """What a level with spoken questions gives."""

    def features(self, model: Any, texts: list[str], rng: np.random.Generator) -> torch.Tensor:
        """(tokens, width) of the questions one after the other."""

    def tokens(self, text: str) -> int:
        """How many of these are a question's."""

    def place(self, word: int) -> int:
        """Which of a question's tokens has the whole of its `word`-th word."""


@dataclass
class Batch:
    embeds_ids: torch.Tensor  # (B, L) token ids, media positions included as placeholders
    media: torch.Tensor  # (B, media tokens, width)
    media_start: int
    positions: torch.Tensor  # (3, B, L)
    plain: torch.Tensor  # (B, 1, T, L) bool, what the T rows behind the media see at test time (block mask, causal)
    barred: torch.Tensor  # the same, and single-modality questions do not see the other modality
    early: torch.Tensor  # the same, and they see no media at all
    answer: torch.Tensor  # (B, L) targets of the last layer: from the header's last token to the answer's last word
    hint: torch.Tensor  # (B, L) extra targets of the last layer: at the key and at "?"
    middle: torch.Tensor  # (B, L) extra targets of a middle layer: at the key, and at the words of a long answer
    kind: list[list[str]]  # per clip and question, its type
    at: torch.Tensor  # (B, Q, SAID) the positions whose outputs are the answer, the first is the header's last token
    word: torch.Tensor  # (B, Q, SAID) what they must say: the words and the end, then IGNORE
    facts: dict[str, torch.Tensor]  # (B, n, ...) per chunk, what `llm.Heads` of the level names
    spoken: torch.Tensor | None = None  # (spoken tokens, width) of the questions that are recordings, row by row
    spoken_at: torch.Tensor | None = None  # (B, L) bool, where they are


class Composer:
    """Clips of the plain level; `cluttered.Composer` is that of the other."""

    sizes = build.PLAIN
    weights = WEIGHTS
    first: ClassVar = dict.fromkeys(("video", "audio", "joint"), 0.8)  # shares to be right before clips become longer
    questions = 16  # a clip, and in a longer one as many as it has chunks: what reading it costs is then used as well
    speech: Speech | None = None  # says questions, of a level that has spoken ones
    aloud: tuple[str, ...] = ()  # types that are spoken in one case of four

    def __init__(self, video: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, model):
        self.video, self.audio, self.model = video, audio, model
        self.level = LEVELS[self.sizes.level]
        self.ids = build.tokenizer(self.sizes).get_vocab()
        self._positions: dict[tuple[int, int], torch.Tensor] = {}
        self.by_thing, self.by_sound = defaultdict(list), defaultdict(list)
        for row, (color, shape, pitch, pattern, _) in enumerate(labels.tolist()):
            self.by_thing[color, shape].append(row)
            self.by_sound[pitch, pattern].append(row)

    def make(
        self, split: str, index: int, n_chunks: int, seed: int, rng: np.random.Generator
    ) -> tuple[Clip, list[int], list[int]]:
        """A clip, and the cached chunks whose video and whose audio features are its own."""
        clip = self.level.clip(split, index, n_chunks, seed)
        rows = [labels_of(chunk) for chunk in clip.chunks]
        video = [int(rng.choice(self.by_thing[color, shape])) for color, shape, *_ in rows]
        audio = [int(rng.choice(self.by_sound[pitch, pattern])) for _, _, pitch, pattern, _ in rows]
        return clip, video, audio

    def facts(self, clip: Clip) -> dict[str, list]:
        """Per chunk: attributes, the previous ones, index, ordinals."""
        out = defaultdict(list)
        last = {name: EMPTY for name in ATTRIBUTES}
        seen = {"things": 0, "sounds": 0}
        for i, chunk in enumerate(clip.chunks):
            row = {n: EMPTY if (v := chunk.value(n)) is None else w.index(v) for n, w in ATTRIBUTES.items()}
            seen["things"] += chunk.thing is not None
            seen["sounds"] += chunk.sound is not None
            for name in ATTRIBUTES:
                out[name].append(row[name])
                out["last " + name].append(last[name])
                if row[name] != EMPTY:
                    last[name] = row[name]
            out["index"].append(i)
            for name, n in seen.items():
                out[name].append(n)
        return out

    def modalities(self, question: Question) -> set[str]:
        """What the question needs to see; a question about one may be barred from the other."""
        by = MODALITY[question.key_attribute] if question.key_attribute else question.modality
        return {by, MODALITY.get(question.ask, by)}

    def barred_from(self, question: Question, strict: float, rng: np.random.Generator) -> str | None:
        """The modality that this question does not see: in a share `strict` of the cases the one it does not need."""
        needs = self.modalities(question)
        if len(needs) == 1 and rng.random() < strict:
            return "audio" if needs == {"video"} else "video"
        return None

    def told(self, question: Question, clip: Clip, words: list[str]) -> list[tuple[int, str, bool]]:
        """(place among the question's words, word) that a middle layer must say there; bool: the last layer too."""
        if question.type == "order":
            return [(words.index(key), TIMES[clip.where(question.key_attribute, key)], False) for key in question.keys]
        if question.keys:
            return [(len(words) - 1 - words[::-1].index(question.keys[0]), question.words[0], True)]
        return [(len(words) - 1, question.words[0], False)]

    def _encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in text.split()]

    def _asked(self, text: str, spoken: bool) -> list[int]:
        """The tokens of a question, written or as a recording."""
        if not spoken or self.speech is None:
            return self._encode(text)
        sound = [self.ids["<|AUDIO|>"]] * self.speech.tokens(text)
        return [self.ids["<|audio_bos|>"], *sound, self.ids["<|audio_eos|>"]]

    def _places(self, words: list[str], spoken: bool) -> list[int]:
        """Where each word of a question is among its tokens; its mark is the end of the recording."""
        if not spoken or self.speech is None:
            return list(range(len(words)))
        said = [1 + self.speech.place(i) for i in range(len(words) - 1)]
        return [*said, 1 + self.speech.tokens(" ".join(words))]

    def _prefix(self, system: int | None) -> list[int]:
        """Everything before the media; `system`: so many unknown words in place of the default prompt."""
        said = self._encode(build.SYSTEM) if system is None else [self.ids["<unk>"]] * system
        head = ["<|im_start|>", "system"], ["<|im_end|>", "<|im_start|>", "user", "<|vision_bos|>", "<|audio_bos|>"]
        return [self.ids[w] for w in head[0]] + said + [self.ids[w] for w in head[1]]

    def positions(self, prefix: list[int], n_chunks: int) -> torch.Tensor:
        """(3, length of prefix and media and two end tokens), from the class's own function."""
        key = (len(prefix), n_chunks)
        if key not in self._positions:
            video, audio = self.sizes.video_per_chunk, build.AUDIO_PER_CHUNK
            chunk = [self.ids["<|VIDEO|>"]] * video + [self.ids["<|AUDIO|>"]] * audio
            side = self.sizes.patches
            ids = prefix + chunk * n_chunks + [self.ids["<|audio_eos|>"], self.ids["<|vision_eos|>"]]
            positions, _ = self.model.get_rope_index(
                torch.tensor([ids]), video_grid_thw=torch.tensor([[2 * n_chunks, side, side]]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long), use_audio_in_video=True,
                audio_seqlens=torch.tensor([40 * n_chunks]), second_per_grids=torch.tensor([1.0]),
            )  # fmt: skip
            self._positions[key] = positions[:, 0]
        return self._positions[key]

    def draw(self, clip: Clip, n: int, rng: np.random.Generator) -> list[Question]:
        pools: dict[str, dict[tuple, list[Question]]] = {}
        for q in self.level.every_question(clip):
            pools.setdefault(q.type, {}).setdefault((q.ask, q.key_attribute), []).append(q)
        kinds = list(pools)
        weight = np.array([self.weights[k] for k in kinds])
        picked = []
        for k in rng.choice(len(kinds), n, p=weight / weight.sum()):
            maps = list(pools[kinds[k]].values())
            same = maps[int(rng.integers(len(maps)))]
            picked.append(same[int(rng.integers(len(same)))])
        return picked

    def batch(self, indices: list[int], n_chunks: int, n_questions: int, seed: int, split: str = "train",
              strict: float = 0.7, system: int | None = None) -> Batch:  # fmt: skip
        rng = np.random.default_rng([seed, indices[0], n_chunks])
        made = [self.make(split, i, n_chunks, seed, rng) for i in indices]
        clips = [clip for clip, _, _ in made]
        asked = [self.draw(c, n_questions, rng) for c in clips]
        prefix = self._prefix(system)
        tail = self._encode("<|im_end|> <|im_start|> assistant")
        aloud = [[(q, q.type in self.aloud and rng.random() < ALOUD) for q in qs] for qs in asked]
        blocks = [[self._asked(q.text, spoken) + tail + self._encode(q.answer) for q, spoken in qs] for qs in aloud]
        start, n_media = len(prefix), n_chunks * self.sizes.per_chunk
        body = start + n_media + 2
        length = body + max(sum(len(b) for b in bs) for bs in blocks)
        length += -length % 32  # few shapes: kernels are made for each
        base = self.positions(prefix, n_chunks)
        B = len(clips)
        pad = self.ids["<|endoftext|>"]
        ids = torch.full((B, length), pad)
        positions = torch.zeros(3, B, length, dtype=torch.long)
        block_of = torch.full((B, length), -1)  # -1: what all blocks share
        block_of[:, body:] = -2  # padding, until filled
        see = torch.ones(B, length, 2, dtype=torch.bool)  # may this row see video, audio?
        answer, hint, middle = (torch.full((B, length), IGNORE) for _ in range(3))
        at = torch.zeros(B, n_questions, SAID, dtype=torch.long)
        word = torch.full((B, n_questions, SAID), IGNORE)
        end = self.ids["<|im_end|>"]
        modality = torch.full((n_media,), 0).reshape(n_chunks, -1)
        modality[:, self.sizes.video_per_chunk :] = 1
        modality = modality.flatten()
        for b, (qs, bs) in enumerate(zip(aloud, blocks, strict=True)):
            ids[b, :start] = torch.tensor(prefix)
            ids[b, body - 2 : body] = torch.tensor([self.ids["<|audio_eos|>"], self.ids["<|vision_eos|>"]])
            positions[:, b, :body] = base
            p = body
            for j, ((q, spoken), block) in enumerate(zip(qs, bs, strict=True)):
                stop = p + len(block)
                ids[b, p:stop] = torch.tensor(block)
                positions[:, b, p:stop] = base[:, -1:] + 1 + torch.arange(len(block))
                block_of[b, p:stop] = j
                words = q.text.split()
                places = self._places(words, spoken)
                question_mark, header = p + places[-1], stop - 1 - len(q.words)
                says = torch.tensor([*block[header + 1 - p :], end])
                at[b, j] = header  # the place of nothing where a short answer has no more words
                at[b, j, : len(says)] += torch.arange(len(says))
                word[b, j, : len(says)] = says
                answer[b, header:stop] = says
                hint[b, question_mark] = says[0]
                for place, said, twice in self.told(q, clips[b], words):
                    middle[b, p + places[place]] = self.ids[said]
                    if twice:
                        hint[b, p + places[place]] = self.ids[said]
                if q.type in SEQUENCES:  # here each word said is the key to the next one
                    middle[b, header + 1 : stop] = says[1:]
                if barred := self.barred_from(q, strict, rng):
                    see[b, p:stop, ("video", "audio").index(barred)] = False
                p = stop
        media = slice(start, start + n_media)
        rows = torch.arange(media.stop, length)  # those before are causal, under every mask
        shared = block_of[:, None, :] == -1
        plain = shared | (block_of[:, None, :] == block_of[:, rows, None])
        plain = plain & (torch.arange(length) <= rows[:, None])
        plain[:, torch.arange(len(rows)), rows] = True
        barred, early = plain.clone(), plain.clone()
        barred[:, :, media] &= see[:, rows][:, :, modality]
        early[:, :, media] = False
        for b in range(B):  # the end tokens shall not become the place where everything is summed up
            if rng.random() < strict:
                barred[b, : body - media.stop, media] = False
        video = torch.tensor([rows for _, rows, _ in made]).flatten()
        audio = torch.tensor([rows for _, _, rows in made]).flatten()
        media_features = torch.cat([self.video[video], self.audio[audio]], 1).float().reshape(B, n_media, -1)
        facts = [self.facts(clip) for clip in clips]
        heard = [q.text for qs in aloud for q, spoken in qs if spoken]
        kinds = [[SPOKEN if spoken else q.type for q, spoken in qs] for qs in aloud]
        return Batch(
            ids, media_features, start, positions, plain[:, None], barred[:, None], early[:, None], answer, hint,
            middle, kinds, at, word, {name: torch.tensor([each[name] for each in facts]) for name in facts[0]},
            self.speech.features(self.model, heard, rng) if self.speech and heard else None,
            (ids == self.ids["<|AUDIO|>"]) if heard else None,
        )  # fmt: skip
