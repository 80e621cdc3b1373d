"""One question about every clip of a folder: answers as lines of a file, resumable, on one machine or many.

What it is: what is asked (`asks`), the file of answers (`answers`), the engines that answer (`local`, `offline`,
`cluster`) and the loop between them (`run`). What it is not: a benchmark (`evals` knows right answers; here there are
none).

The one idea: engines hand back rows in any order, as often as they like; the driver alone writes, by key. So a worker
may die at any moment and its work be done again, and still every clip stands in the file exactly once.
"""

from .run import run as run
