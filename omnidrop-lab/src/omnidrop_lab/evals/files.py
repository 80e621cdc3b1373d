"""Official benchmark files: found in a folder or on the hub, read as plain rows (json, jsonl, csv, parquet).

`Clips` finds the file of a clip. Archives are not unpacked; the error says how to.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnidrop.errors import InputError, SettingError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")
CLIPS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".wav", ".flac", ".mp3", ".m4a", ".ogg")


def folder_of(data: str | Path | None, hub: str | None, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder that holds a data set: `data` itself, or the snapshot of a hub id (`data`, else the task's own).

    `say` gets a message before a download begins. Raises `SettingError` and `InputError`.
    """
    if data is not None and Path(data).is_dir():
        return Path(data)
    name = str(data) if data is not None else hub
    if name is None:
        raise SettingError("this task has no data set on the hub: give the folder of yours, --data FOLDER")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SettingError(f"--data {name} is no folder; give the folder of the data set, or a hub id such as {hub}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"getting the data set {name} from the hub: its videos are many GB")
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the data set {name} cannot be downloaded from the hub ({reason}); download it to a folder and give "
            "--data FOLDER"
        ) from error


def annotation(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that the folder holds. Raises `InputError`."""
    for name in names:
        found = sorted(folder.glob(name))
        if found:
            return found[0]
    raise InputError(
        f"{folder} holds none of {', '.join(names)}: give the folder that has the official annotation file"
    )


def read(path: Path) -> Any:
    """The content of an annotation file by its suffix. Raises `InputError`."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
        if kind == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if kind == ".csv":
            return list(csv.DictReader(text.splitlines()))
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); download it again") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SettingError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    return parquet.read_table(path).to_pylist()


def checksum(path: Path) -> str:
    """sha256 of a file, first 12 digits: runs on different annotations must not be mixed."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Clips:
    """Finds clips by their official relative path, or else by file name anywhere in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, Path | None] | None = None

    def find(self, *relative: str) -> Path:
        """The first of these paths that exists; else the one file of such a name; else the first, for the error."""
        for each in relative:
            if (self.folder / each).exists():
                return self.folder / each
        if self._index is None:
            self._index = {}
            for path in sorted(self.folder.rglob("*")):
                if path.suffix.lower() in CLIPS:
                    # ambiguous: two files have this name
                    self._index[path.name] = None if path.name in self._index else path
        for each in relative:
            found = self._index.get(Path(each).name)
            if found is not None:
                return found
        return self.folder / relative[0]


def missing(folder: Path, example: Path) -> str:
    """The message for a folder without any clip: what is wrong, and the next step."""
    packed = sorted(path.name for path in folder.rglob("*") if path.name.lower().endswith(ARCHIVES))
    if packed:
        shown = ", ".join(packed[:3]) + (", ..." if len(packed) > 3 else "")
        return f"no clip is unpacked in {folder}: unpack {shown} there (unzip, tar -xf), then run this again"
    return f"no clip of the data set is in {folder} (the first would be {example}): download the videos too"
