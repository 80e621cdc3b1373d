"""A synthetic audio-visual benchmark whose evidence is known: clips, questions, and where each answer lies.

What it is: a generator of real video files (`task` decides, `render` draws and plays, `files` writes mp4) and of
questions with one-word answers (`task`, worded by `prompts`), reproducible from (split, index). For every question the
chunks and the modality that hold the evidence are known, so one can measure whether it survived pruning.
What it is not: a model, a method or an evaluation loop. Nothing here imports torch.
"""

from omnidrop.needle.task import Chunk, Clip, Question, Sound, Thing, clip, questions

__all__ = ["Chunk", "Clip", "Question", "Sound", "Thing", "clip", "questions"]
