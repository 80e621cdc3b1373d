"""Two threads that silence warnings do not undo each other."""

from __future__ import annotations

import threading
import warnings

from omnidrop.quiet import silenced


def test_a_thread_that_leaves_first_takes_no_filter_with_it() -> None:
    inside, left, heard = threading.Event(), threading.Event(), []

    def other() -> None:
        with silenced():
            inside.set()
            left.wait(0.2)  # the first thread's block ends meanwhile, if it could begin

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(5)
        with silenced("old", DeprecationWarning):
            left.set()
            thread.join(5)
            try:
                warnings.warn("old habits", DeprecationWarning, stacklevel=1)
            except DeprecationWarning as error:
                heard.append(error)
    assert not heard
