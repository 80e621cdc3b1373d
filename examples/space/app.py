"""The page of `omnidrop app` as a Hugging Face Space. README.md has its settings; it runs on any machine as well.

Variables: OMNIDROP_MODEL names a model (a hub id; without it the shipped tiny model answers), OMNIDROP_DTYPE its dtype.
SPACE_HOST and GRADIO_SERVER_PORT are set by the Space.
"""

import os
import signal
import threading

import omnidrop
from omnidrop.app import page
from omnidrop.app.session import Session

MODEL = os.environ.get("OMNIDROP_MODEL") or None
DTYPE = os.environ.get("OMNIDROP_DTYPE") or None
PORT = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
NAMES = [name for name in os.environ.get("SPACE_HOST", "").split(",") if name]  # by which browsers call the Space
FRAME = "https://huggingface.co"  # shows the Space in a frame


def session() -> Session:
    """The model, and the limits of a page that is open to everybody: short clips, short answers."""
    model, processor = omnidrop.load(MODEL, dtype=DTYPE)
    return Session(model, processor, name=MODEL, max_seconds=60, max_new_tokens=64, max_job_seconds=120)


def main() -> None:
    """Serve until the Space is stopped."""
    page.check(host="0.0.0.0", port=PORT, max_upload_mb=50, allow_host=NAMES)
    answering = session()
    answering.warm_up()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with page.serve(
        answering, host="0.0.0.0", port=PORT, max_upload_mb=50, allow_host=NAMES, allow_frame=[FRAME]
    ) as url:
        print(url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
