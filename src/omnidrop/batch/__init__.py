"""One question about every clip of a folder: answers as lines of a file, resumable, on one machine or several.

`asks` lists the questions, `answers` is the output file, `local`, `offline` and `cluster` are the engines, and `driver`
is the loop. Engines may return rows in any order and more than once; only the driver writes, by key, so every clip has
exactly one row even if workers die.
"""

from .driver import run as run
