"""One question about a folder of clips, by several processes or machines through Ray.

    python examples/batch_on_ray.py FOLDER "QUESTION" --out answers.jsonl
    python examples/batch_on_ray.py FOLDER "QUESTION" --out answers.jsonl --model Qwen/Qwen2.5-Omni-7B --workers 4

Without --model the shipped tiny model answers. It runs `omnidrop batch`, which goes on where it stopped, lists what
failed apart and retries clips that end their process. It needs Ray: pip install 'omnidrop[ray]'. Where Ray finds GPUs,
each worker has one; on a cluster, start it where `ray status` shows the machines.
"""

# %% The arguments.
import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("question")
parser.add_argument("--out", type=Path, required=True, help="a file that ends in .jsonl")
parser.add_argument("--model", help="folder or hub id (default: the shipped tiny model)")
parser.add_argument("--keep", default="0.3", help="share of audio and video tokens (default: %(default)s)")
parser.add_argument("--workers", default="2", help="processes with a model each (default: %(default)s)")
options = parser.parse_args()

# %% The run. Exit status 1: some clips have no answer; what is there stays, and the same command asks again.
command = [sys.executable, "-m", "omnidrop", "batch", str(options.folder), options.question, "--json"]
command += ["--out", str(options.out), "--keep", options.keep, "--workers", options.workers]
command += ["--model", options.model] if options.model else []
done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
if done.returncode not in (0, 1) or not done.stdout:
    sys.exit(done.returncode)  # the command has said why
summary = json.loads(done.stdout)

# %% The answers: a line of JSON for each clip, with what was kept.
rows = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
print(f"{len(rows)} answers in {options.out}, {summary['failed']} failures")
for text, count in Counter(row["answer"] for row in rows).most_common():
    print(f"{count:5d}  {text}")
sys.exit(done.returncode)
