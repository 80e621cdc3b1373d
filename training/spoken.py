"""Spoken questions for the recipe: many voices' words, joined to sentences, through the model's own audio encoder.

Stage 1 teaches the encoder to turn each spoken word into the embedding that the written word has before stage 2, so the
language model meets spoken questions as it meets written ones. Stage 2 composes every spoken question anew.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from omnidrop_lab.needle.clutter import speech
from omnidrop_lab.needle.render import SAMPLE_RATE

from omnidrop.models import adapt
from training import build

VOICES = 48
PER_WORD = round(speech.BEAT * build.MEL_PER_SECOND) // 4  # tokens; the audio encoder halves twice
LONGEST, SENTENCES = 10, 24  # words of a sentence and sentences of a step, in stage 1
TAIL = SAMPLE_RATE // 5  # silence behind a recording, as the processor's padding is


class Hearing:
    """What `compose.Speech` and `encoders.Hearing` ask for."""

    def __init__(self, model, seed: int):
        self.front = build.processor(build.CLUTTER).feature_extractor
        vocabulary = build.tokenizer(build.CLUTTER).get_vocab()
        self.words = [word for word in dict.fromkeys(build.CLUTTER.words) if word.isalpha()]
        self.row = {word: i for i, word in enumerate(self.words)}
        rng = np.random.default_rng([seed, 9])
        bank = []
        for _ in range(VOICES):
            who = speech.voice(rng)
            bank.append([speech.word(word, who, rng) for word in self.words])
        self.bank = np.array(bank, np.float32)  # (voices, words, samples)
        ids = torch.tensor([vocabulary[word] for word in self.words])
        self.written = adapt(model).decoder.module.embed_tokens.weight[ids].detach().clone()  # (words, width)
        self.seed = seed

    def tokens(self, text: str) -> int:
        return PER_WORD * len(speech.words_of(text))

    def place(self, word: int) -> int:
        return PER_WORD * (word + 1) - 1

    def _encoded(self, model, sentences: list[list[int]], rng: np.random.Generator) -> torch.Tensor:
        """(tokens of all, width)"""
        waves = []
        for rows in sentences:
            said = self.bank[int(rng.integers(VOICES)), rows].reshape(-1)
            waves.append(np.pad(said + rng.normal(0, 0.004, len(said)).astype(np.float32), (0, TAIL)))
        mel = self.front(waves, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")["input_features"]
        frames = [round(speech.BEAT * build.MEL_PER_SECOND) * len(rows) for rows in sentences]
        joined = torch.cat([each[:, :n] for each, n in zip(mel, frames, strict=True)], 1)
        return adapt(model).audio.module(joined, feature_lens=torch.tensor(frames)).last_hidden_state

    @torch.no_grad()
    def features(self, model, texts: list[str], rng: np.random.Generator) -> torch.Tensor:
        return self._encoded(model, [[self.row[word] for word in speech.words_of(text)] for text in texts], rng)

    def __call__(self, model, step: int) -> tuple[torch.Tensor, float]:
        rng = np.random.default_rng([self.seed, 10, step])
        lengths = rng.integers(1, LONGEST + 1, SENTENCES)
        sentences = [[int(row) for row in rng.integers(0, len(self.words), n)] for n in lengths]
        out = self._encoded(model, sentences, rng)
        want = torch.tensor([row for rows in sentences for row in rows]).repeat_interleave(PER_WORD)
        logits = out @ self.written.T / 4
        size = (out.pow(2).mean().sqrt() - 1).pow(2)
        return F.cross_entropy(logits, want) + 0.1 * size, (logits.argmax(-1) == want).float().mean().item()
