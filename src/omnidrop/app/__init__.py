"""The page of `omnidrop app`: ask about a clip with and without pruning, and see what was kept.

`clips` lists the clips, `session` checks a question and gives both answers, `answers` streams one of them, `show` and
`preview` make their HTML, and `page` is the Gradio page. `streams` has the live streams of cameras and microphones,
`route` their requests, `frames` their pictures and `live_tab` their part of the page. One model, one job at a time, no
accounts; by default the server listens on this machine alone. File size, clip length, answer length, queue and streams
are bounded.
"""
