"""Ask about your own clip with pruning and with all tokens: both answers, their times, and what was kept.

    python examples/your_clip.py CLIP "QUESTION"
    python examples/your_clip.py CLIP "QUESTION" --model Qwen/Qwen2.5-Omni-7B --keep 0.2 --report kept.html

CLIP is a video, a sound file or an image. The default model, Qwen2.5-Omni-3B, is downloaded once; docs/quickstart.md
counts what it needs.
"""

# %% The arguments.
import argparse
import time

import torch

import omnidrop

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("clip")
parser.add_argument("question")
parser.add_argument("--model", default="Qwen/Qwen2.5-Omni-3B", help="folder or hub id (default: %(default)s)")
parser.add_argument("--keep", type=float, default=0.3, help="share of audio and video tokens (default: %(default)s)")
parser.add_argument("--max-tokens", type=int, default=64, help="length of the answer (default: %(default)s)")
parser.add_argument("--report", metavar="FILE.html", help="write a page that shows what was kept")
options = parser.parse_args()

# %% Read the clip before the model: a wrong path must not wait for a download.
clip = omnidrop.media.read(options.clip)
model, processor = omnidrop.load(options.model)
inputs = omnidrop.build(processor, clip, options.question).to(model.device)


# %% `generate` is the model's own. `lean` changes no answer; `prune` drops tokens.
def answer() -> tuple[str, float]:
    """The answer and its seconds."""
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=options.max_tokens, do_sample=False)
    said = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said.strip(), time.perf_counter() - start


method = omnidrop.OmniDrop(keep=options.keep)
with torch.inference_mode(), omnidrop.lean(model):
    answer()  # the first run of either kind pays for what is set up once
    full, full_seconds = answer()
    with omnidrop.prune(model, method):
        answer()
    with omnidrop.prune(model, method, scores=options.report is not None) as trace:
        pruned, pruned_seconds = answer()

# %% What became of it.
counts = trace.layout.count(0)
print(f"{clip.path}: {clip.seconds:.0f} s, {counts['video']} video and {counts['audio']} audio tokens")
print(f"all tokens  {full_seconds:6.2f} s  {full}")
print(f"keep {options.keep:<5g}  {pruned_seconds:6.2f} s  {pruned}")
shares = ", ".join(f"{word} {share:.2f}" for word, share in trace.budgets.items())
print(f"kept: {shares}; cache {trace.kv_bytes.pruned / 1e6:.2f} of {trace.kv_bytes.full / 1e6:.2f} MB")
if pruned != full:
    print("the answers differ: if the pruned one is worse, keep more")

if options.report is not None:
    omnidrop.report(trace, options.report, media=[clip], titles=[options.question], answers=[pruned])
    print(f"wrote {options.report}")
