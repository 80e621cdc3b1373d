"""The cluttered level of the benchmark: what is asked for is hidden among things that look and sound like it.

`scene` decides what happens in a clip, `questions` what is asked, `pictures` and `sound` render it. As in the plain
level, everything follows from (split, index), and for every question the chunks that hold the evidence are known.
"""
