"""Stage 2's batches: clips and questions of the task, composed from cached chunk features.

What it is: one sequence a clip, exactly as the processor lays it out, followed by many question blocks that do not see
each other and share positions, with the masks and targets of the recipe. What it is not: a model or an optimiser.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from omnidrop.needle.task import ATTRIBUTES, LONGEST, MODALITY, SEQUENCES, TIMES, Clip, Question, every_question
from omnidrop.needle.task import clip as make_clip
from training import build
from training.chunks import EMPTY

WEIGHTS = {
    "video": 2.5, "audio": 2.5, "joint": 3.5, "time": 2.5, "order": 2.0, "list": 2.0, "count": 0.7, "none": 1.0,
    "transcribe": 2.0, "caption": 2.0,
}  # fmt: skip
IGNORE = -100
SPOKEN = LONGEST + 1  # tokens of the longest answer, its end included


@dataclass
class Batch:
    embeds_ids: torch.Tensor  # (B, L) token ids, media positions included as placeholders
    media: torch.Tensor  # (B, n * 28, width)
    media_start: int
    positions: torch.Tensor  # (3, B, L)
    plain: torch.Tensor  # (B, 1, T, L) bool, what the T rows behind the media see at test time (block mask, causal)
    barred: torch.Tensor  # the same, and single-modality questions do not see the other modality
    early: torch.Tensor  # the same, and they see no media at all
    answer: torch.Tensor  # (B, L) targets of the last layer: from the header's last token to the answer's last word
    hint: torch.Tensor  # (B, L) extra targets of the last layer: at the key and at "?"
    middle: torch.Tensor  # (B, L) extra targets of a middle layer: at the key, and at the words of a long answer
    kind: list[list[str]]  # per clip and question, its type
    at: torch.Tensor  # (B, Q, SPOKEN) the positions whose outputs are the answer, the first is the header's last token
    word: torch.Tensor  # (B, Q, SPOKEN) what they must say: the words and the end, then IGNORE
    facts: dict[str, torch.Tensor]  # (B, n) per chunk: attributes, the previous ones, index, ordinals


class Composer:
    def __init__(self, video: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, model):
        self.video, self.audio, self.model = video, audio, model
        self.ids = build.tokenizer().get_vocab()
        self.by_thing, self.by_sound = defaultdict(list), defaultdict(list)
        for row, (color, shape, pitch, pattern, _) in enumerate(labels.tolist()):
            self.by_thing[color, shape].append(row)
            self.by_sound[pitch, pattern].append(row)
        self._positions: dict[tuple[int, int], torch.Tensor] = {}

    def _encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in text.split()]

    def _prefix(self, system: int | None) -> list[int]:
        """Everything before the media; `system`: so many unknown words in place of the default prompt."""
        said = self._encode(build.SYSTEM) if system is None else [self.ids["<unk>"]] * system
        head = ["<|im_start|>", "system"], ["<|im_end|>", "<|im_start|>", "user", "<|vision_bos|>", "<|audio_bos|>"]
        return [self.ids[w] for w in head[0]] + said + [self.ids[w] for w in head[1]]

    def positions(self, prefix: list[int], n_chunks: int) -> torch.Tensor:
        """(3, length of prefix and media and two end tokens), from the class's own function."""
        key = (len(prefix), n_chunks)
        if key not in self._positions:
            chunk = [self.ids["<|VIDEO|>"]] * build.VIDEO_PER_CHUNK + [self.ids["<|AUDIO|>"]] * build.AUDIO_PER_CHUNK
            ids = prefix + chunk * n_chunks + [self.ids["<|audio_eos|>"], self.ids["<|vision_eos|>"]]
            positions, _ = self.model.get_rope_index(
                torch.tensor([ids]), video_grid_thw=torch.tensor([[2 * n_chunks, 6, 6]]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long), use_audio_in_video=True,
                audio_seqlens=torch.tensor([40 * n_chunks]), second_per_grids=torch.tensor([1.0]),
            )  # fmt: skip
            self._positions[key] = positions[:, 0]
        return self._positions[key]

    def draw(self, clip: Clip, n: int, rng: np.random.Generator) -> list[Question]:
        pools: dict[str, dict[tuple, list[Question]]] = {}
        for q in every_question(clip):
            pools.setdefault(q.type, {}).setdefault((q.ask, q.key_attribute), []).append(q)
        kinds = list(pools)
        weight = np.array([WEIGHTS[k] for k in kinds])
        picked = []
        for k in rng.choice(len(kinds), n, p=weight / weight.sum()):
            maps = list(pools[kinds[k]].values())
            same = maps[int(rng.integers(len(maps)))]
            picked.append(same[int(rng.integers(len(same)))])
        return picked

    def batch(self, indices: list[int], n_chunks: int, n_questions: int, seed: int, split: str = "train",
              strict: float = 0.7, system: int | None = None) -> Batch:  # fmt: skip
        rng = np.random.default_rng([seed, indices[0], n_chunks])
        clips = [make_clip(split, i, n_chunks, seed) for i in indices]
        asked = [self.draw(c, n_questions, rng) for c in clips]
        prefix = self._prefix(system)
        tail = self._encode("<|im_end|> <|im_start|> assistant")
        blocks = [[self._encode(q.text) + tail + self._encode(q.answer) for q in qs] for qs in asked]
        start, n_media = len(prefix), n_chunks * build.PER_CHUNK
        body = start + n_media + 2
        length = body + max(sum(len(b) for b in bs) for bs in blocks)
        base = self.positions(prefix, n_chunks)
        B = len(clips)
        pad = self.ids["<|endoftext|>"]
        ids = torch.full((B, length), pad)
        positions = torch.zeros(3, B, length, dtype=torch.long)
        block_of = torch.full((B, length), -1)  # -1: what all blocks share
        block_of[:, body:] = -2  # padding, until filled
        see = torch.ones(B, length, 2, dtype=torch.bool)  # may this row see video, audio?
        answer, hint, middle = (torch.full((B, length), IGNORE) for _ in range(3))
        at = torch.zeros(B, n_questions, SPOKEN, dtype=torch.long)
        word = torch.full((B, n_questions, SPOKEN), IGNORE)
        end = self.ids["<|im_end|>"]
        modality = torch.full((n_media,), 0).reshape(n_chunks, -1)
        modality[:, build.VIDEO_PER_CHUNK :] = 1
        modality = modality.flatten()
        for b, (qs, bs) in enumerate(zip(asked, blocks, strict=True)):
            ids[b, :start] = torch.tensor(prefix)
            ids[b, body - 2 : body] = torch.tensor([self.ids["<|audio_eos|>"], self.ids["<|vision_eos|>"]])
            positions[:, b, :body] = base
            p = body
            for j, (q, block) in enumerate(zip(qs, bs, strict=True)):
                stop = p + len(block)
                ids[b, p:stop] = torch.tensor(block)
                positions[:, b, p:stop] = base[:, -1:] + 1 + torch.arange(len(block))
                block_of[b, p:stop] = j
                words = q.text.split()
                question_mark, header = p + len(words) - 1, stop - 1 - len(q.words)
                says = torch.tensor([*block[header + 1 - p :], end])
                at[b, j] = header  # the place of nothing where a short answer has no more words
                at[b, j, : len(says)] += torch.arange(len(says))
                word[b, j, : len(says)] = says
                answer[b, header:stop] = says
                hint[b, question_mark] = says[0]
                if q.type == "order":
                    for key in q.keys:
                        time = TIMES[clips[b].where(q.key_attribute, key)]
                        middle[b, p + words.index(key)] = self.ids[time]
                elif q.keys:
                    k = p + len(words) - 1 - words[::-1].index(q.keys[0])
                    hint[b, k] = middle[b, k] = says[0]
                else:
                    middle[b, question_mark] = says[0]
                if q.type in SEQUENCES:  # here each word said is the key to the next one
                    middle[b, header + 1 : stop] = says[1:]
                by = MODALITY[q.key_attribute] if q.key_attribute else q.modality
                other = MODALITY.get(q.ask, by)
                if by == other and rng.random() < strict:
                    see[b, p:stop, 1 if by == "video" else 0] = False
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
        video, audio, facts = [], [], defaultdict(list)
        for c in clips:
            last = {name: EMPTY for name in ATTRIBUTES}
            seen = {"things": 0, "sounds": 0}
            for i, chunk in enumerate(c.chunks):
                row = {n: EMPTY if (v := chunk.value(n)) is None else w.index(v) for n, w in ATTRIBUTES.items()}
                video.append(int(rng.choice(self.by_thing[row["color"], row["shape"]])))
                audio.append(int(rng.choice(self.by_sound[row["pitch"], row["pattern"]])))
                seen["things"] += chunk.thing is not None
                seen["sounds"] += chunk.sound is not None
                for name in ATTRIBUTES:
                    facts[name].append(row[name])
                    facts["last " + name].append(last[name])
                    if row[name] != EMPTY:
                        last[name] = row[name]
                facts["index"].append(i)
                for name, n in seen.items():
                    facts[name].append(n)
        media_features = torch.cat([self.video[video], self.audio[audio]], 1).float().reshape(B, n_media, -1)
        return Batch(
            ids, media_features, start, positions, plain[:, None], barred[:, None], early[:, None], answer, hint,
            middle, [[q.type for q in qs] for qs in asked], at, word,
            {name: torch.tensor(values).reshape(B, n_chunks) for name, values in facts.items()},
        )  # fmt: skip
