"""Accuracy of a saved model on rendered clips: `python -m training.evaluate FOLDER --split test --clips 100`.

Files written, decoded, through the real processor, the class's own encoders and layers; and the diagnostic "nobody sees
media after layer l". An answer is right when all of its words and its end are. What is before the text behind the media
is the same for every question, and no diagnostic hides anything from it: a clip is read once, and each question goes on
from the key/value cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from omnidrop_lab.needle import prompts
from omnidrop_lab.needle.task import LONGEST, SEQUENCES

from omnidrop.engine.upstream import MASK_CACHE, cache_of
from omnidrop.models import adapt
from training import build

LENGTHS = (4, 16, 32)  # chunks of the clips that are measured beside those of `report`'s own length


def load(folder: str | Path):
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).float().eval()
    return model, Qwen2_5OmniProcessor.from_pretrained(folder)


class Reading:
    """A clip that the model has read up to its last media token, ready for any question."""

    @torch.no_grad()
    def __init__(self, model, front, pictures, sound, sizes: build.Sizes = build.PLAIN):
        self.model, self.words, self.template = model, front.tokenizer, front.apply_chat_template
        self.decoder = adapt(model).decoder.module
        x = build.process(front, [self._prompt("")], [pictures], [sound], sizes)
        ids = x["input_ids"]
        token = {"audio": self.words.audio_token_id, "video": self.words.video_token_id}
        stop = 1 + int(torch.isin(ids[0], torch.tensor(list(token.values()))).nonzero().max())
        self.before = ids[0, :stop].tolist()
        self.at = {name: ids[0, :stop] == value for name, value in token.items()}
        self.placed = {
            "video_grid_thw": x["video_grid_thw"], "audio_seqlens": x["feature_attention_mask"].sum(1),
            "second_per_grids": torch.tensor([1.0]), "use_audio_in_video": True,
        }  # fmt: skip
        features = {
            "audio": model.get_audio_features(x["input_features"], x["feature_attention_mask"]).last_hidden_state,
            "video": torch.cat(model.get_video_features(x["pixel_values_videos"], x["video_grid_thw"]).pooler_output),
        }
        embedded = model.get_input_embeddings()(ids[:, :stop])
        for name, values in features.items():
            embedded[0, self.at[name]] = values.to(embedded.dtype)
        positions = self._positions(self.before + self._behind(""))[:, :, :stop]
        out = self.decoder(inputs_embeds=embedded, position_ids=positions, use_cache=True)
        self.cache = cache_of(out)  # of the text before the media, and of the media

    def _prompt(self, text: str) -> str:
        return self.template(prompts.conversation("-", text), add_generation_prompt=True, tokenize=False)

    def _behind(self, text: str) -> list[int]:
        """The tokens from the media's end to the answer's header."""
        ids = self.words(self._prompt(text))["input_ids"]
        return [self.words.convert_tokens_to_ids("<|audio_eos|>"), *ids[ids.index(self.words.video_token_id) + 1 :]]

    def _positions(self, ids: list[int]) -> torch.Tensor:
        return self.model.get_rope_index(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **self.placed)[0]

    @torch.no_grad()
    def ask(self, text: str, words: int = 1, blind_after: int | None = None,
            hide: tuple[str, ...] = ("video", "audio")) -> str:  # fmt: skip
        """The answer to a question: one word, or, for `words` above 1, greedily up to the end or so many words (then
        "..." follows). `blind_after`: in later layers the text behind the media sees none of the modalities in `hide`
        (-1: in no layer). Media rows still see each other, so a sound may know its picture."""
        ids, stop = self._behind(text), len(self.before)
        positions = self._positions(self.before + ids)[:, :, stop:]
        said: list[int] = []
        while len(said) < words and self.words.eos_token_id not in said:
            said.append(self._next(ids, positions, blind_after, hide))
            ids, positions = said[-1:], positions[..., -1:] + 1
        self.cache.crop(stop - self.cache.get_seq_length())  # negative: so many tokens from its end
        answer = self.words.convert_ids_to_tokens(said)
        if words == 1:
            return answer[0]
        return " ".join(answer[:-1] if answer[-1] == self.words.eos_token else [*answer, "..."])

    def _next(self, ids: list[int], positions: torch.Tensor, blind_after: int | None, hide: tuple[str, ...]) -> int:
        """The token that follows `ids`, which the cache takes in."""
        hidden = self.model.get_input_embeddings()(torch.tensor([ids]))
        cache = {MASK_CACHE: self.cache}
        if blind_after is None:
            hidden = self.decoder(
                inputs_embeds=hidden, position_ids=positions, use_cache=True, **cache
            ).last_hidden_state
            return int(self.model.lm_head(hidden[:, -1]).argmax())
        past = self.cache.get_seq_length()
        sees = torch.ones(len(ids), past + len(ids), dtype=torch.bool).tril(past)
        blind = sees.clone()
        for name in hide:
            blind[:, : len(self.before)] &= ~self.at[name]
        rotary = self.decoder.rotary_emb(hidden, positions)
        for i, layer in enumerate(self.decoder.layers):
            mask = (sees if i <= blind_after else blind)[None, None]
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, **cache)
        return int(self.model.lm_head(self.decoder.norm(hidden)[:, -1]).argmax())

    def answers(self, questions, **how) -> list[str]:
        """What the model says to each question, in words; see `ask`."""
        words = {q.text: LONGEST + 1 if q.type in SEQUENCES else 1 for q in questions}
        said = {text: self.ask(text, n, **how) for text, n in words.items()}
        return [said[q.text] for q in questions]


def accuracy(model, front, split: str, n_clips: int, n_chunks: int, ways: Sequence[dict] = ({},),
             draws: int = 3, sizes: build.Sizes = build.PLAIN) -> list[dict[str, dict]]:  # fmt: skip
    """A table by type for each of the ways to ask (what `Reading.ask` takes). Each clip is rendered and read once.
    `sizes` says of which level; recordings are not asked here."""
    from omnidrop_lab.needle import files
    from omnidrop_lab.needle.levels import LEVELS
    from omnidrop_lab.needle.task import SPOKEN

    level = LEVELS[sizes.level]
    types = tuple(kind for kind in level.types if kind != SPOKEN)
    counts: list[dict[str, list[int]]] = [defaultdict(lambda: [0, 0]) for _ in ways]
    with tempfile.TemporaryDirectory() as folder:
        for index in range(n_clips):
            made = level.clip(split, index, n_chunks)
            reading = Reading(model, front, *files.read(files.write(made, Path(folder) / "clip.mp4")), sizes)
            asked = [q for draw in range(draws) for q in level.questions(made, types, seed=draw)]
            for how, table in zip(ways, counts, strict=True):
                for question, answer in zip(asked, reading.answers(asked, **how), strict=True):
                    table[question.type][0] += answer == question.answer
                    table[question.type][1] += 1
    return [{kind: {"accuracy": right / n, "n": n} for kind, (right, n) in sorted(table.items())} for table in counts]


def report(folder: str | Path, n_clips: int = 100, n_chunks: int = 8, split: str = "test",
           lengths: Sequence[int] = LENGTHS, log=print) -> dict:  # fmt: skip
    """All of it at `n_chunks`, fewer clips where a question is asked in more ways; a quarter of them at `lengths`."""
    model, front = load(folder)
    short = lambda table: " ".join(f"{kind} {row['accuracy']:.2f}" for kind, row in table.items())  # noqa: E731
    out = {"split": split, "chunks": n_chunks, "unpruned": {}, "blind_after": {}, "hidden": {}}
    for n, clips in ((n_chunks, n_clips), *((other, max(4, n_clips // 4)) for other in lengths)):
        (out["unpruned"][n],) = accuracy(model, front, split, clips, n)
        log(f"{split}, {n} chunks, unpruned: {short(out['unpruned'][n])}")
    hidden = ("audio", "video")
    ways = [{"blind_after": -1, "hide": (name,)} for name in hidden]
    out["hidden"] = dict(zip(hidden, accuracy(model, front, split, max(4, n_clips // 2), n_chunks, ways), strict=True))
    for name, table in out["hidden"].items():
        log(f"{name} tokens hidden from the question: {short(table)}")
    layers = range(3, build.LAYERS)
    ways = [{"blind_after": layer} for layer in layers]
    blind = accuracy(model, front, split, max(4, n_clips // 5), n_chunks, ways, draws=2)
    out["blind_after"] = dict(zip(layers, blind, strict=True))
    for layer, table in out["blind_after"].items():
        log(f"no media for the question after layer {layer}: {short(table)}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=LENGTHS, help="further lengths, a quarter of the clips"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(report(args.folder, args.clips, args.chunks, args.split, args.lengths, log), indent=1))


if __name__ == "__main__":
    main()
