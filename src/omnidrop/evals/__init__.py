"""Published benchmarks under one trusted runner: official files in, one row per question out, errors never scored.

What it is: the benchmarks' files (`tasks`), a strict answer parser (`parse`), scores (`score`), a batched and resumable
loop (`runner`, `answer`, `rows`), and tables with intervals (`summary`). What it is not: a model, a method or a harness
for everything: multiple choice, transcription and captions about one clip are all it asks.

The one idea: three outcomes are kept apart all the way to the table. An answer is right or wrong; an answer that
chooses nothing is *unparsed* (not right, and counted); a clip or a batch that failed is an *error*: it has no score,
and its run is incomplete.
"""
