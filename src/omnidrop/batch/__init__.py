"""One question about every clip of a folder: answers as lines of a file, resumable, on one machine or many.

What it is: what is asked (`asks`), the file of answers (`answers`), the engines that answer (`local`, `offline`,
`cluster`) and the loop between them (`driver`). What it is not: a benchmark; here nobody knows the right answers
(`evals` does).

The one idea: engines hand back rows in any order, as often as they like; the driver alone writes, by key. So a worker
may die at any moment and its work be done again, and still every clip stands in the file exactly once.
"""

from .driver import run as run
