"""docs/img/needle_clutter.jpg: three chunks of a cluttered clip, the first and the last frame of each.

python -m benchmarks.needle_images
"""

from pathlib import Path

import numpy as np
from omnidrop_lab.needle.levels import LEVELS
from omnidrop_lab.needle.render import FPS
from omnidrop_lab.needle.task import SECONDS_PER_CHUNK
from PIL import Image

CLIP, CHUNKS, SIZE = 11, 3, 224  # of the train split, pixels
TO = Path(__file__).parents[1] / "docs" / "img" / "needle_clutter.jpg"


def main() -> None:
    level = LEVELS["clutter"]
    frames = level.frames(level.clip("train", CLIP, CHUNKS), SIZE)
    each = FPS * SECONDS_PER_CHUNK
    shown = [frames[i] for chunk in range(CHUNKS) for i in (chunk * each, (chunk + 1) * each - 1)]
    gap = np.full((SIZE, 4, 3), 255, np.uint8)
    row = [part for picture in shown for part in (picture, gap)][:-1]
    Image.fromarray(np.concatenate(row, 1)).save(TO, quality=88)


if __name__ == "__main__":
    main()
