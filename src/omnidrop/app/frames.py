"""Pictures of live streams, decoded in a process of their own, as uploaded files are (`reading`): one that hangs or
grows too large is ended alone.

The child (`python -m omnidrop.app.frames`) reads JPEG pictures from standard input, each behind its length, and writes
width, height and RGB bytes of each: 0, 0 and nothing for what is none. Numbers have 4 bytes, little-endian.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np

from ..errors import MediaError
from .reading import limit_memory

SIDE = 1024  # pixels at most
LIMIT = 20.0  # seconds for one picture; the first has the start of the child in it
CHILD = [sys.executable, "-P", "-m", "omnidrop.app.frames"]


class Decoder:
    """One child, begun with the first picture; for one thread at a time, but `close` may come from any."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, jpeg: bytes) -> np.ndarray:
        """(H, W, 3) uint8. Raises `MediaError` for what is no JPEG picture of at most `SIDE` * `SIDE` pixels."""
        if self._child is None:
            self._child = subprocess.Popen(
                CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        timer = threading.Timer(LIMIT, child.kill)
        timer.start()
        try:
            child.stdin.write(struct.pack("<I", len(jpeg)) + jpeg)
            child.stdin.flush()
            width, height = struct.unpack("<II", child.stdout.read(8))
            content = child.stdout.read(3 * width * height)
            picture = np.frombuffer(content, np.uint8).reshape(height, width, 3)
        except (OSError, ValueError, struct.error) as error:  # it has ended; the next picture begins another
            self.close()
            raise MediaError(
                f"reading a picture of {len(jpeg)} bytes ended its process (a fault in the decoder, or more than "
                f"{LIMIT:g} seconds); start the stream again"
            ) from error
        finally:
            timer.cancel()
        if not picture.size:
            raise MediaError(
                f"a picture of {len(jpeg)} bytes is no JPEG picture of at most {SIDE} x {SIDE} pixels; send it so"
            )
        return picture

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):  # what was not sent any more
                    pipe.close()  # type: ignore[union-attr]
            child.wait()


def _child() -> None:
    """Decode what standard input gives, until it ends."""
    from PIL import Image

    limit_memory()
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(4)) == 4:
        size, content = (0, 0), b""
        data = source.read(*struct.unpack("<I", head))
        # whatever Pillow says of it
        with suppress(Exception), Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            if max(picture.size) <= SIDE:
                content, size = picture.convert("RGB").tobytes(), picture.size
        out.write(struct.pack("<II", *size) + content)
        out.flush()


if __name__ == "__main__":
    _child()
