"""Choose `keep` by measurement: ask about clips whose answers are known, and take the lowest share that loses little.

    python examples/choose_keep.py
    python examples/choose_keep.py --model FOLDER --clips 20 --method tuned --keep 0.5 0.3 0.2 0.1

It runs `omnidrop needle`, which draws the clips (package omnidrop-lab), and reads its JSON. With the shipped tiny model
and a few clips it takes a minute on a CPU and proves little: give --clips 60 and a model of your own. For questions of
your own: `omnidrop eval` at each share, then `omnidrop compare` (docs/compare.md).
"""

# %% The arguments.
import argparse
import json
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", metavar="FOLDER", help="(default: the shipped tiny model)")
parser.add_argument("--method", default="tuned", help="(default: %(default)s)")
parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1, 0.05], metavar="SHARE")
parser.add_argument("--clips", type=int, default=3, help="how many clips (default: %(default)s)")
parser.add_argument("--loss", type=float, default=0.05, help="share of right answers to give up (default: %(default)s)")
options = parser.parse_args()

# %% The command. "none" is the model as it is. --split dev: choose on these clips, and report on those of test.
command = [sys.executable, "-m", "omnidrop", "needle", "--json", "--quiet", "--split", "dev"]
command += ["--methods", "none", options.method, "--keep", *map(str, options.keep)]
command += ["--types", "video", "audio", "joint", "--clips", str(options.clips), "--resamples", "500"]
command += ["--model", options.model] if options.model else []
done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
if done.returncode:
    sys.exit(done.returncode)  # the command has said why
results = json.loads(done.stdout)["results"]

# %% Right answers at each share, with the interval, and against the model as it is.
(unpruned,) = (entry for entry in results if entry["method"] == "none")
before = unpruned["accuracy"]["evidence"]["value"]
print(f"all tokens: {before:.2f} of the answers right\n\n keep   right  (95 % interval)   lost")
chosen = None
for entry in sorted((entry for entry in results if entry is not unpruned), key=lambda entry: -entry["asked_keep"]):
    if "unreachable" in entry:
        print(f" {entry['asked_keep']:.2f}   out of reach")
        continue
    right = entry["accuracy"]["evidence"]
    lost = before - right["value"]
    interval = f"({right['low']:.2f} to {right['high']:.2f})"
    print(f" {entry['asked_keep']:.2f}   {right['value']:5.2f}  {interval}    {lost:+6.2f}")
    if lost > options.loss:
        break
    chosen = entry["asked_keep"]

# %% The choice: the lowest share before the first that loses more.
if chosen is None:
    print(f"\nno share loses at most {options.loss:g}; try a higher --keep or another --method")
else:
    print(f"\nthe lowest keep that loses at most {options.loss:g}: {chosen:g}")
