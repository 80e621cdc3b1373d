"""What a prompt costs, stage by stage, with and without `lean` and pruning: measured beside counted.

    architectures   published sizes by configuration, with random weights (and the shipped tiny model)
    workload        seconds, fps, picture, sound, batch -> the tensors that a processor would give
    cost            FLOPs and bytes by formula
    plan            what a method keeps of a workload, without running a model
    variants        "stock", "lean", "lean+omnidrop:keep=0.3" -> what is applied to the model
    stages          the clock around encoders, decoder and head
    compare         variants in turns, median and spread, against the ideal
    plot            time and memory against length

What it is not: a test of answers (`omnidrop.needle` is). Random weights cost what trained ones cost, and say nothing.
"""
