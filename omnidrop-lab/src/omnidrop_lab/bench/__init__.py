"""Cost of a prompt by stage, for the stock model, `lean` and pruning methods: measured times beside counted FLOPs.

    architectures   published model sizes with random weights (and the shipped tiny model)
    workload        seconds, fps, picture size, sound, batch -> the tensors that a processor would give; or a file
    cost            FLOPs and bytes by formula
    plan            the tokens that a method keeps of a workload, without running a model
    variants        "stock", "lean", "lean+omnidrop:keep=0.3" -> what is applied to the model
    compare         variants in alternation: median and spread, relative to the ideal
    plot            time and memory by length

Random weights cost the same time and memory as trained ones; answers are measured by `needle` and `evals`.
"""
