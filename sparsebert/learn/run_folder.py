"""The folder of a run: whose it is, and what is noted there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from sparsebert.learn.settings import Settings
from sparsebert.storage import write_atomically

FILE = "settings.json"
RESULT = "result.json"
"""What a phase notes when it is finished."""


def claim(folder: Path, settings: Settings, text: str) -> None:
    """Note the settings in the folder, or check that they are those noted there.

    Raises:
        ValueError: the folder holds a run with other settings or another text.
    """
    note = dataclasses.asdict(settings)
    note["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    note = json.loads(json.dumps(note))  # tuples become lists, as in the file
    path = folder / FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, note)
        return
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        noted = None
    if not isinstance(noted, dict):
        raise ValueError(f"learn: {path} is not what learn wrote there; delete {folder} or use -o")
    other = [
        f"{name.replace('_', '-')} {noted.get(name)}, now {value}"
        for name, value in note.items()
        if noted.get(name) != value
    ]
    if other:
        raise ValueError(
            f"learn: {folder} holds a run with other settings ({'; '.join(other)}); repeat them "
            "to go on with it, choose another folder with -o, or delete this one"
        )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader never sees half of it."""
    write_atomically("learn", path, (json.dumps(value, indent=1) + "\n").encode())
