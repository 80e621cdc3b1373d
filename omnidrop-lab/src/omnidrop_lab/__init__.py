"""Measure token pruning: the needle benchmark, time and memory, published benchmarks, paired comparisons.

Each part is a package: `needle`, `bench`, `evals`, and `lmms_eval` (the plugin for lmms-eval). Their commands join
`omnidrop` through the entry-point group `omnidrop.commands`.
"""
