"""Compare methods at an equal budget, on clips whose evidence is known: does the answer survive, and does the evidence?

Run it:  python examples/compare_methods.py
Three clips of the *dev* split and the shipped tiny model; some 20 s on a CPU. It writes nothing. Three clips show how
it is done and prove little: `omnidrop needle --methods all` runs the benchmark, with intervals (docs/methods.md).
"""

# %% The run: every method at the same `keep`, in the same currency. "none" is the model as it is.
import torch
from omnidrop_lab.needle import bench
from omnidrop_lab.needle.summary import summarise

import omnidrop
from omnidrop.loading import TINY
from omnidrop.provenance import model_checksum

CLIPS, KEEP = 3, 0.2
METHODS = ("tuned", "omnidrop", "divprune", "fastv", "random")

torch.set_num_threads(1)  # the model is too small to share
model, processor = omnidrop.load()
config = bench.Config(model=model_checksum(TINY), split="dev", types=("video", "audio", "joint", "transcribe"), draws=1)
cases = bench.plan(METHODS, [KEEP], layers=model.config.text_config.num_hidden_layers, seeds=1)
rows = bench.run(model, processor, config, cases, CLIPS)

# %% From rows to numbers: means over questions, all four budgets as measured.
document = summarise(rows, resamples=200)
results = {entry["method"]: entry for entry in document["results"]}

print(
    f"{'method':10s}  {'one word':>8s}  {'transcript':>10s}  {'layers':>6s}  {'input':>6s}  {'flops':>6s}  {'kv':>6s}"
)
for name, entry in results.items():
    if "unreachable" in entry:
        print(f"{name:10s}  {entry['unreachable']}")
        continue
    one, words = entry["accuracy"]["evidence"]["value"], entry["words"]["sequence"]["value"]
    shares = "  ".join(f"{entry['budgets'][word]:6.2f}" for word in ("layers", "input", "flops", "kv"))
    print(f"{name:10s}  {one:8.2f}  {words:10.2f}  {shares}")

# %% Why did it fail, or not? Share of the evidence's tokens that enter each layer, and where the model looks things up.
print("\nshare of a question's evidence tokens that enter layer 0, 4, 8, 12")
for name, entry in results.items():
    if "survival" in entry:
        survival = entry["survival"]["evidence"]["value"]
        print(f"{name:10s}  " + "  ".join(f"{survival[layer]:.2f}" for layer in (0, 4, 8, 12)))
