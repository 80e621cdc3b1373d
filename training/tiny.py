"""The recipe as a command: `python -m training.tiny --seed 0 --out runs/seed0`.

Every stage leaves a file in `--out` and is skipped when the file is there, so an interrupted run goes on where it was:
chunks.pt (rendered chunks), encoders.pt (trained encoders), features.pt (their outputs), llm.pt (saved every few
minutes, resumed from), and at the end model/ (the `save_pretrained` folder) and results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=("plain", "clutter"), default="plain", help="of the needle benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunks", type=int, default=8192, help="rendered chunks, a multiple of 128")
    parser.add_argument("--encoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=3000, help="the last step, those before an extension included")
    parser.add_argument("--peak", type=float, default=1.2e-3, help="the highest learning rate of the language model")
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="chunks of the clips after the curriculum; default 4 to 16"
    )
    parser.add_argument("--compile", action="store_true", help="train through torch.compile; needs a C++ compiler")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument(
        "--test-clips", type=int, default=100, help="rendered clips for the plain level's final check; 0: none"
    )
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    from training import build, chunks, cluttered, compose, encoders, evaluate, llm, spoken

    sizes, level = (build.PLAIN, chunks) if args.level == "plain" else (build.CLUTTER, cluttered)

    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

    model = build.model(args.seed, sizes)
    hearing = spoken.Hearing(model, args.seed) if level is cluttered else None
    rendered, trained, cached = (args.out / f"{name}.pt" for name in ("chunks", "encoders", "features"))
    if not cached.exists():
        if rendered.exists():
            data = torch.load(rendered, weights_only=False)
        else:
            data = level.render(args.chunks, args.seed, log=log)
            torch.save(data, rendered)
        if trained.exists():
            model.load_state_dict(torch.load(trained))
        else:
            accuracy = encoders.train(model, data, args.encoder_steps, args.seed, hearing=hearing, log=log)
            log(f"encoders, held-out chunks: {llm.show(accuracy)}")
            torch.save(model.state_dict(), trained)
        video, audio = encoders.features(model, data)
        kept = {"labels": data.labels, "content": data.content, "model": model.state_dict()}
        torch.save({"video": video, "audio": audio, **kept}, cached)
        log(f"features cached after {time.monotonic() - began:.0f} s")
        del data
    saved = torch.load(cached, weights_only=False)
    model.load_state_dict(saved["model"])
    if level is chunks:
        composer, heads = compose.Composer(saved["video"], saved["audio"], saved["labels"], model), llm.Heads
    else:
        composer = cluttered.Composer(saved["video"], saved["audio"], saved["content"], model)
        composer.speech = hearing
        heads = cluttered.Heads
    lengths = args.lengths or llm.MIXED
    how = args.save_minutes, args.steps, args.peak, lengths, heads
    llm.train(model, composer, args.out, args.seed, *how, log=log, compiled=args.compile)
    build.save(model, args.out / "model", sizes)
    if level is cluttered:
        log(f"test it: omnidrop needle --clutter --model {args.out / 'model'} --dtype float32 --methods none cutoff")
    if level is cluttered or not args.test_clips:
        return
    results = evaluate.report(args.out / "model", n_clips=args.test_clips, n_chunks=8, log=log)
    state = torch.load(args.out / "llm.pt", weights_only=False)["state"]
    results |= {"seed": args.seed, "steps": args.steps, "extended_after_step": state["begin"] or None}
    results["llm_seconds"] = state["seconds"]
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    log(json.dumps(results))


if __name__ == "__main__":
    main()
