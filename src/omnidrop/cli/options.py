"""Options that several commands share. Nothing heavy is imported: `omnidrop --help` is instant."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from .parsing import Parser

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

METHOD_HELP = (
    "the pruning method and its settings, such as omnidrop:evict=true,lambda_div=0 (default omnidrop; "
    "`omnidrop methods` lists them), a preset such as paper/7b/30, or none: all tokens"
)


def reading_options(command: argparse.ArgumentParser) -> None:
    """How files are read: the options of `run` and `batch`."""
    reading = command.add_argument_group("reading")
    reading.add_argument(
        "--fps", type=float, default=2.0, metavar="N", help="pictures a second (default 2, the paper's)"
    )
    reading.add_argument(
        "--max-frames", type=int, default=128, metavar="N", help="pictures of a video at most (default 128)"
    )
    reading.add_argument(
        "--max-pixels",
        type=int,
        default=128 * 28 * 28,
        metavar="N",
        help="pixels of a video's picture at most, width times height (default 100352)",
    )
    reading.add_argument("--no-audio", action="store_true", help="leave the sound of videos out")
    reading.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="what a file may ask for at most: seconds, pixels, frames, channels, memory, ... (omnidrop.media.Limits)",
    )


def share(text: str) -> float:
    """A number; what is none, such as 30%, is answered by what it should be."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share in (0, 1]: write 0.3 for 30 %") from None


def method_options(target: Any) -> None:
    """The method and what it keeps."""
    group = target.add_argument_group("pruning")
    group.add_argument(
        "--keep",
        type=share,
        metavar="SHARE",
        help="share of audio and video tokens to keep, counted as --budget says, in (0, 1] (default 0.3); images are "
        "kept whole unless the method says otherwise (omnidrop:images=prune)",
    )
    group.add_argument(
        "--budget",
        metavar="UNIT",
        help="what --keep counts: layers (mean over the layers, default), input (what enters the decoder), flops (of "
        "the decoder's prefill), kv (bytes of the cache) or total (FLOPs of the first token, encoders included)",
    )
    group.add_argument(
        "--query",
        metavar="RULE",
        help="which tokens of the prompt rank the others: after_media (all text behind the media; a recording where "
        "there is no text), question, last, speech (the newest recording) or speech:N (the Nth)",
    )
    group.add_argument("--method", default="omnidrop", metavar="NAME[:FIELD=VALUE,...]", help=METHOD_HELP)
    group.add_argument("--paper", metavar="MODEL/PERCENT", help="the paper's setting: 7b/30, 7b/20, 3b/30 or 3b/20")


def model_option(command: argparse.ArgumentParser) -> None:
    """Which model."""
    command.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="a saved model or a hub id (default: the shipped tiny model)"
    )


def answer_options(command: argparse.ArgumentParser) -> None:
    """How it answers, and how the model is loaded: the options of `run` and `batch`."""
    group = command.add_argument_group("answering")
    group.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="length of the answer in tokens (default 128)"
    )
    group.add_argument("--system", metavar="TEXT", help="a system prompt (default: the chat template's own)")
    model_options(command)


def model_options(target: Any, *, seed: bool = True) -> None:
    """How the model is loaded. `seed`: whether the command has --seed."""
    group = target.add_argument_group("loading the model") if isinstance(target, argparse.ArgumentParser) else target
    group.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: the checkpoint's own)")
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ... or auto for several (default: cuda where there is one)"
    )
    group.add_argument("--attn", metavar="NAME", help="attention of transformers: sdpa, eager, flash_attention_2, ...")
    group.add_argument(
        "--device-map", metavar="MAP", help="how accelerate spreads the model over devices: auto, balanced, ..."
    )
    checkpoint_options(group)
    if seed:
        group.add_argument(
            "--seed", type=int, metavar="N", help="of random numbers, also of methods that select at random (default 0)"
        )


def checkpoint_options(target: Any) -> None:
    """Which weights of a saved model, and in which form."""
    target.add_argument(
        "--quantize",
        choices=("bnb-4bit", "bnb-8bit", "torchao-int8"),
        help="weights of linear layers in 4 or 8 bits, by bitsandbytes (bnb) or torchao, which must be installed",
    )
    target.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id (default: main)")


def json_option(target: Any) -> None:
    """One document instead of text."""
    target.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")


def output_options(target: Any) -> None:
    """What is printed, and where."""
    json_option(target)
    target.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
