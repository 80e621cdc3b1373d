"""Published benchmarks: official files in, one row per question out, errors never scored.

`tasks` read the benchmarks' files, `parse` is a strict answer parser, `score` scores, `runner`, `answer`, `reading` and
`rows` are a batched and resumable loop, `summary` makes tables with intervals, `compare` pairs runs. Tasks are multiple
choice, transcription and captions about one clip.

Three outcomes stay separate up to the tables: an answer is right or wrong; an answer that names no option is *unparsed*
(not right, and counted); a clip or batch that failed is an *error*, which has no score and makes its run incomplete.
"""
