"""Ask two questions about one clip, with pruning, and look at what was kept: which seconds, picture or sound, how deep.

Run it:  python examples/look_at_what_was_kept.py
It uses the shipped clip and tiny model, takes seconds on a CPU, and writes nothing.
"""

# %% A model and a clip. For your own: omnidrop.load("Qwen/Qwen2.5-Omni-7B"), omnidrop.media.read("clip.mp4").
import torch

import omnidrop
from omnidrop import Modality
from omnidrop.loading import TINY

model, processor = omnidrop.load()
clip = omnidrop.media.read(TINY.parent / "demo.mp4")
print(f"{clip.path}: {clip.seconds:.0f} s, {len(clip.frames)} pictures, sound at {clip.sample_rate} Hz")

# %% The same clip, asked about what is seen and about what is heard. `generate` is the model's own.
QUESTIONS = ("what color is the circle ?", "what pattern is the tenor one ?")


def ask(question: str, method: omnidrop.Method) -> tuple[str, omnidrop.Trace]:
    """The answer, and the trace of what entered each decoder layer."""
    inputs = omnidrop.build(processor, clip, question).to(model.device)
    with torch.inference_mode(), omnidrop.prune(model, method) as trace:
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    said = output[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(said, skip_special_tokens=True).strip(), trace


answers: dict[str, str] = {}
traces: dict[str, omnidrop.Trace] = {}
for question in QUESTIONS:
    answers[question], traces[question] = ask(question, omnidrop.OmniDrop(keep=0.3))
    trace = traces[question]
    shares = ", ".join(f"{word} {share:.2f}" for word, share in trace.budgets.items())
    print(f"\n{question}  ->  {answers[question]}\nkept, in each currency: {shares}")


# %% Which seconds? `trace.kept[layer][row]` are positions of the prompt; the layout says what each of them is.
def by_chunk(trace: omnidrop.Trace, layer: int, kind: Modality) -> list[int]:
    """Tokens of one modality that entered a layer, chunk of 2 s by chunk."""
    who = trace.layout
    positions = trace.kept[layer][0]
    mine = positions[who.modality[0, positions] == kind]
    return torch.bincount(who.chunk[0, mine], minlength=int(who.chunk.max()) + 1).tolist()


LAYERS = (0, 8, 11)  # of 16; this model looks things up in layers 5 to 10 (docs/needle.md)
for question, trace in traces.items():
    print(f"\n{question}  (tokens by chunk of 2 s)")
    for layer in LAYERS:
        for kind in (Modality.VIDEO, Modality.AUDIO):
            row = " ".join(f"{count:3d}" for count in by_chunk(trace, layer, kind))
            print(f"  layer {layer:2d}  {kind.name.lower():5s}  {row}")

# %% The split between picture and sound follows the question (the paper's fig. 4): share of audio among what is kept.
print("\nshare of audio among the kept tokens")
audio_share: dict[str, float] = {}
for question, trace in traces.items():
    counts = trace.counts[LAYERS[-1]]
    audio_share[question] = counts["audio"] / (counts["audio"] + counts["video"])
    print(f"  {audio_share[question]:.2f} in layer {LAYERS[-1]}: {question}")

# %% What it saved. The full numbers are those of the same prompt, had nothing been dropped.
trace = traces[QUESTIONS[0]]
print(
    f"\ncache {trace.kv_bytes.pruned / 1e3:.0f} kB of {trace.kv_bytes.full / 1e3:.0f} kB ({trace.kv_bytes.ratio:.0%})"
)
print(f"decoder arithmetic of the prompt: {trace.flops.ratio:.0%}")
