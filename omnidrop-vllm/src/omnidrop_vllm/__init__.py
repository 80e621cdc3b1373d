"""Layer-wise pruning inside vLLM: `vllm serve MODEL --additional-config '{"omnidrop": {"keep": 0.3}}'`.

vLLM finds `register` by its entry point and calls it in every process that it starts. It installs one hook, on the
creation of a configuration. Everything else (model class, worker, scheduler, statistics) is chosen there and only where
the option is given, so any other server runs vLLM's own code. The method is the library's (schedule, score, select,
prefill); this folder only fits it into the engine. docs/vllm.md.
"""

from __future__ import annotations


def register() -> None:
    """The entry point `omnidrop` of the group `vllm.general_plugins`. May be called more than once in a process."""
    from .hook import install

    install()
