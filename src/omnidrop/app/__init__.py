"""The page of `omnidrop app`: ask a clip with and without pruning, and see what was kept.

What it is: one room from a file to a page in the browser. `clips` is what may be asked about, `answers` one streamed
answer, `desk` a question from its check to both answers, `show` and `preview` their HTML, `page` the Gradio page, which
alone knows Gradio. What it is not: a service. One model, one job at a time, no accounts; it listens on this machine
unless told otherwise.

The one idea: everything is bounded before it starts (bytes of a file, seconds of a clip, tokens of an answer, people in
the queue) and gone when it ends (files, jobs of people who left).
"""
