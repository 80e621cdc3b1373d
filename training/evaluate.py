"""Accuracy of a saved model on rendered clips: `python -m training.evaluate FOLDER --split test --clips 100`.

What it is: files written, decoded, through the real processor and the class's own forward pass, all questions of a clip
in a batch; and the diagnostic "nobody sees media after layer l". An answer is right when all of its words and its end
are. What it is not: `omnidrop needle`, which compares methods.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from omnidrop.models import adapt
from omnidrop.needle.task import LONGEST, SEQUENCES
from training import build


def load(folder: str | Path):
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).float().eval()
    return model, Qwen2_5OmniProcessor.from_pretrained(folder)


def ask(model, front, pictures, sound, texts: list[str], blind_after: int | None = None,
        hide: tuple[str, ...] = ("video", "audio"), words: int = 1) -> list[str]:  # fmt: skip
    """The answer to each question about a clip: one word, or, for `words` above 1, greedily up to the end or so many
    words (then "..." follows). `blind_after`: in later layers the text behind the media sees none of the modalities in
    `hide` (-1: in no layer). Media rows still see each other, so a sound may know its picture."""
    import torch

    prompt = [
        front.apply_chat_template(
            [{"role": "user", "content": [{"type": "video", "video": "-"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for text in texts
    ]
    x = build.process(front, prompt[:1], [pictures], [sound])  # the media once; the other prompts differ in text only
    first = front.tokenizer(prompt[0])["input_ids"]
    hole = first.index(front.tokenizer.video_token_id)
    full = x["input_ids"][0].tolist()
    media = full[hole : hole + len(full) - len(first) + 1]
    rows = []
    for text in prompt:
        ids = front.tokenizer(text)["input_ids"]
        rows.append(ids[:hole] + media + ids[hole + 1 :])
    length = max(map(len, rows))
    ids = torch.tensor([[front.tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        heard = model.get_audio_features(x["input_features"], x["feature_attention_mask"]).last_hidden_state
        seen = torch.cat(model.get_video_features(x["pixel_values_videos"], x["video_grid_thw"]).pooler_output)
        features = {"audio": heard, "video": seen}
        said: list[list[int]] = [[] for _ in texts]
        speaking = list(range(len(texts)))
        for _ in range(words):  # no cache: the plain definition of greedy decoding, under any mask
            tokens = _next(model, front, x, ids[speaking], mask[speaking], features, blind_after, hide)
            for row, token in zip(speaking, tokens.tolist(), strict=True):
                said[row].append(token)
            ids = torch.cat([ids, torch.tensor([[row[-1]] for row in said])], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            speaking = [row for row in speaking if said[row][-1] != front.tokenizer.eos_token_id]
            if not speaking:
                break
    answers = [front.tokenizer.convert_ids_to_tokens(tokens) for tokens in said]
    if words == 1:
        return [answer[0] for answer in answers]
    end = front.tokenizer.eos_token
    return [" ".join(answer[:-1] if answer[-1] == end else [*answer, "..."]) for answer in answers]


def _next(model, front, x, ids, mask, features, blind_after, hide):
    """(B,) the token that follows each row of `ids` (B, L)."""
    import torch

    n, length = ids.shape
    token = {"audio": front.tokenizer.audio_token_id, "video": front.tokenizer.video_token_id}
    words = model.get_input_embeddings()(ids)
    for name, values in features.items():
        words = words.masked_scatter((ids == token[name])[..., None], values.repeat(n, 1).to(words.dtype))
    positions, _ = model.get_rope_index(
        ids, video_grid_thw=x["video_grid_thw"].repeat(n, 1), attention_mask=mask, use_audio_in_video=True,
        audio_seqlens=x["feature_attention_mask"].sum(1).repeat(n), second_per_grids=torch.full((n,), 1.0),
    )  # fmt: skip
    lm = adapt(model).decoder
    if blind_after is None:
        last = lm(inputs_embeds=words, attention_mask=mask, position_ids=positions).last_hidden_state[:, -1]
        return model.lm_head(last).argmax(-1)
    sees = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    sees = sees | torch.eye(length, dtype=torch.bool)
    is_media = (ids == token["audio"]) | (ids == token["video"])
    behind = is_media.int().flip(1).cumsum(1).flip(1) == 0
    hidden = torch.isin(ids, torch.tensor([token[name] for name in hide]))
    blind = sees & ~(behind[:, None, :, None] & hidden[:, None, None, :])
    rotary = lm.rotary_emb(words, positions)
    for i, layer in enumerate(lm.layers):
        words = layer(words, attention_mask=sees if i <= blind_after else blind, position_embeddings=rotary)
    return model.lm_head(lm.norm(words)[:, -1]).argmax(-1)


def answers(model, front, pictures, sound, questions, **how) -> list[str]:
    """What the model says to each question, in words; see `ask`."""
    said: dict[str, str] = {}
    for words in (1, LONGEST + 1):
        texts = list(dict.fromkeys(q.text for q in questions if (q.type in SEQUENCES) == (words > 1)))
        if texts:
            said |= zip(texts, ask(model, front, pictures, sound, texts, words=words, **how), strict=True)
    return [said[q.text] for q in questions]


def accuracy(model, front, split: str, n_clips: int, n_chunks: int, blind_after: int | None = None, draws: int = 3,
             hide: tuple[str, ...] = ("video", "audio")) -> dict[str, dict]:  # fmt: skip
    from omnidrop.needle import clip, files, questions

    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with tempfile.TemporaryDirectory() as folder:
        for index in range(n_clips):
            made = clip(split, index, n_chunks)
            pictures, sound = files.read(files.write(made, Path(folder) / "clip.mp4"))
            asked = [q for draw in range(draws) for q in questions(made, seed=draw)]
            said = answers(model, front, pictures, sound, asked, blind_after=blind_after, hide=hide)
            for question, answer in zip(asked, said, strict=True):
                counts[question.type][0] += answer == question.answer
                counts[question.type][1] += 1
    return {kind: {"accuracy": right / n, "n": n} for kind, (right, n) in sorted(counts.items())}


def report(folder: str | Path, n_clips: int = 100, n_chunks: int = 8, split: str = "test", log=print) -> dict:
    model, front = load(folder)
    short = lambda table: " ".join(f"{kind} {row['accuracy']:.2f}" for kind, row in table.items())  # noqa: E731
    out = {"split": split, "unpruned": {}, "blind_after": {}, "hidden": {}}
    out["unpruned"][n_chunks] = accuracy(model, front, split, n_clips, n_chunks)
    log(f"{split}, {n_chunks} chunks, unpruned: {short(out['unpruned'][n_chunks])}")
    for other in (4, 16, 32):
        out["unpruned"][other] = accuracy(model, front, split, max(4, n_clips // 4), other)
        log(f"{split}, {other} chunks, unpruned: {short(out['unpruned'][other])}")
    for hidden in ("audio", "video"):
        out["hidden"][hidden] = accuracy(model, front, split, max(4, n_clips // 2), n_chunks, -1, hide=(hidden,))
        log(f"{hidden} tokens hidden from the question: {short(out['hidden'][hidden])}")
    for layer in range(3, build.LAYERS):
        out["blind_after"][layer] = accuracy(model, front, split, max(4, n_clips // 5), n_chunks, layer, draws=2)
        log(f"no media for the question after layer {layer}: {short(out['blind_after'][layer])}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    print(json.dumps(report(args.folder, args.clips, args.chunks, args.split), indent=1))


if __name__ == "__main__":
    main()
