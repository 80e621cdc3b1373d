"""Write a pruning method of your own in some thirty lines, and measure it against random and the best recipe we know.

Run it:  python examples/your_own_method.py
Three clips of the *dev* split and the shipped tiny model; some 15 s on a CPU. A method that proves good moves into a
file of its own: docs/add_a_method.md.
"""

# %% The method: of every 2 s, keep the tokens that differ most from that stretch's mean, pictures and sound apart. It
# is a frozen dataclass of two parts: its settings, and `choose`. `keep` and `budget` are inherited, and met: `choose`
# is told how many tokens to return. Ranks inside a stretch are compared, not distances: those of pictures and of sound
# have different scales, and whichever is larger would take all (try it: it answers worse than random).
from dataclasses import dataclass
from typing import ClassVar

import torch
from omnidrop_lab.needle import bench
from omnidrop_lab.needle.summary import summarise
from torch import Tensor

import omnidrop
from omnidrop import Modality
from omnidrop.core.select import keep_highest
from omnidrop.loading import TINY
from omnidrop.methods.base import InputMethod, InputView, check_range
from omnidrop.provenance import model_checksum


@dataclass(frozen=True, kw_only=True)
class Novelty(InputMethod):
    """Keep what is far from the mean of its 2 s. Raises `SettingError`."""

    reference: ClassVar[str] = "an example; no paper"
    center: float = 1.0  # how much of the mean is taken away; 0 ranks by length alone

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("center", self.center, 0.0, 1.0)

    def choose(self, view: InputView, n: int) -> Tensor:
        """Exactly n of the N tokens: ascending indices. Distances in float32; equal values go to the lower index."""
        features = view.features.float()
        window = view.chunk * len(Modality) + view.modality  # (N,): every chunk of either modality
        size = torch.bincount(window)
        sums = torch.zeros(len(size), features.shape[1], device=features.device).index_add_(0, window, features)
        mean = sums / size.clamp(min=1)[:, None]
        distance = (features - self.center * mean[window]).norm(dim=-1)
        order = torch.argsort(distance, descending=True, stable=True)
        order = order[torch.argsort(window[order], stable=True)]  # window by window, the farthest first
        place = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[window[order]]
        rank = torch.empty_like(distance).index_copy_(0, order, place / size[window[order]])
        return keep_highest(-rank, len(rank) - n)


# %% It is a method like any other: any currency, batches, any attention backend.
model, processor = omnidrop.load()
torch.set_num_threads(1)  # the model is too small to share
clip = omnidrop.media.read(TINY.parent / "demo.mp4")
inputs = omnidrop.build(processor, clip, "what color is the circle ?").to(model.device)
for word in ("layers", "flops", "kv"):
    with torch.inference_mode(), omnidrop.prune(model, Novelty(keep=0.4, budget=word)) as trace:
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    print(f"keep 0.4 of {word}: measured {trace.budgets[word]:.3f}, answer {answer!r}")

# %% Is it any good? The benchmark takes a method by value: a case is a label, a complete name, the keep and the method.
CLIPS, KEEP = 3, 0.3
config = bench.Config(model=model_checksum(TINY), split="dev", types=("video", "audio", "joint"), draws=1)
cases = bench.plan(("random", "tuned"), [KEEP], layers=model.config.text_config.num_hidden_layers, seeds=1)
cases.append(bench.Case("novelty", "novelty", KEEP, Novelty(keep=KEEP)))
rows = bench.run(model, processor, config, cases, CLIPS)
results = {entry["method"]: entry for entry in summarise(rows, resamples=200, reference="random")["results"]}

print("\nright answers, and share of the evidence's tokens that entered")
for name, entry in results.items():
    right = entry["accuracy"]["evidence"]["value"]
    evidence = entry["survival"]["evidence"]["value"][0]
    print(f"  {name:8s}  {right:.2f}  {evidence:.2f}")
