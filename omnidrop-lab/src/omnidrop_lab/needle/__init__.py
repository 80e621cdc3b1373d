"""A synthetic audio-visual benchmark with known evidence: clips, questions, and the location of each answer.

`task` decides what happens in a clip and what is asked, `render` makes frames and sound, `files` writes mp4, `prompts`
words the questions; all are reproducible from (split, index) and none imports torch. For every question the chunks and
the modality that hold the evidence are known, so that its survival of pruning can be measured: `ask` one clip, `bench`
the loop over clips and methods, `summary` the numbers, `plot` the pictures.
"""

from omnidrop_lab.needle.task import Chunk, Clip, Question, Sound, Thing, clip, questions

__all__ = ["Chunk", "Clip", "Question", "Sound", "Thing", "clip", "questions"]
