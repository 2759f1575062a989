"""The masks of a HuggingFace model on disk: the mask file, and a note of what it belongs to.

A save that is killed between the two files must leave a folder that loads. So where an older save
is replaced, the note is written twice: first the new one with the old one in it, under "replaces",
which together fit the old masks and the new ones; then, after the masks, the new one alone.

The note ends with the SHA-256 sum of its fields; notes without one, of older versions, are read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sparsebert import __version__
from sparsebert.backends import registry
from sparsebert.integrations.huggingface.discovery import SelfAttention
from sparsebert.masks import AttentionMask
from sparsebert.storage import only_writer, sum_of_fields, write_atomically

MASKS_FILE = "sparsebert_masks.safetensors"
CONFIG_FILE = "sparsebert_config.json"
VERSION = 1

_REPLACES = "replaces"
_SUM = "sha256"
_ATTEMPTS = 5
"""Readings of the two files before a reader that meets a writer gives up."""

POSITIONS = ("sequence", "batch")
"""What `positions` of `sparsify` may be; the first where a note of older versions does not say."""

_FIELDS = {
    "format_version": int,
    "sparsebert_version": str,
    "model_type": str,
    "attention_modules": int,
    "backend": str,
    "masks_fingerprint": str,
}


def write_masks(
    folder: str | os.PathLike[str],
    masks: AttentionMask,
    attention: SelfAttention,
    settings: dict[str, str],
) -> None:
    """Write both files to `folder`, which is made if need be; see the module's text.

    `settings` are the arguments of `sparsify` beside the masks: backend and positions.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    note = {
        "format_version": VERSION,
        "sparsebert_version": __version__,
        "model_type": attention.owner.config.model_type,
        "attention_modules": len(attention.modules),
        "backend": settings["backend"],
        "positions": settings["positions"],
        "masks_fingerprint": masks.fingerprint,
    }
    with only_writer(path):
        replaced = _note_of_what_is_there(path)
        if replaced is not None:
            _write_note(path, {**note, _REPLACES: replaced})
        masks.save(path / MASKS_FILE)
        _write_note(path, note)


def _note_of_what_is_there(folder: Path) -> dict[str, Any] | None:
    """The note that describes the masks in the folder now; None where they cannot be loaded."""
    try:
        _, note = _read_both(folder)
    except (ValueError, OSError):
        return None
    return note


def _write_note(folder: Path, note: dict[str, Any]) -> None:
    text = json.dumps({**note, _SUM: sum_of_fields(note, but=_SUM)}, indent=2) + "\n"
    write_atomically("save_masks", folder / CONFIG_FILE, text.encode())


def read_masks(
    folder: str | os.PathLike[str], attention: SelfAttention
) -> tuple[AttentionMask, dict[str, str]]:
    """Masks and settings from `folder`, checked against each other and the model."""
    _check_folder(Path(folder))
    masks, note = _read_both(Path(folder))
    model_type, modules = attention.owner.config.model_type, len(attention.modules)
    if (note["model_type"], note["attention_modules"]) != (model_type, modules):
        raise ValueError(
            f"load_masks: the masks in {os.fspath(folder)} are for a {note['model_type']} model "
            f"with {note['attention_modules']} attention modules, but this is a {model_type} "
            f"model with {modules}; to use them all the same, AttentionMask.load and sparsify"
        )
    return masks, {name: note[name] for name in ("backend", "positions")}


def _check_folder(folder: Path) -> None:
    """Raise FileNotFoundError that says what is missing and where it comes from."""
    remedy = "give the folder that save_masks wrote to"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"load_masks: no folder {str(folder)!r} on this machine; {remedy}. Nothing is "
            "downloaded: for a model on the Hub pass huggingface_hub.snapshot_download("
            '"user/repo"), the folder with its files'
        )
    for name in (CONFIG_FILE, MASKS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"load_masks: no {name} in {folder}; {remedy} (save_pretrained saves no masks)"
            )


def _read_both(folder: Path) -> tuple[AttentionMask, dict[str, Any]]:
    """The masks, and the note that describes them."""
    note = _read_note(folder / CONFIG_FILE)
    for _ in range(_ATTEMPTS):
        masks = AttentionMask.load(folder / MASKS_FILE)
        for described in (note, note.get(_REPLACES)):
            if described is not None and described["masks_fingerprint"] == masks.fingerprint:
                fields = {field: described[field] for field in _FIELDS}
                return masks, {**fields, "positions": described.get("positions", POSITIONS[0])}
        before, note = note, _read_note(folder / CONFIG_FILE)
        if note == before:  # else somebody saves at this moment
            break
    raise ValueError(
        f"load_masks: {MASKS_FILE} in {folder} is not the file that {CONFIG_FILE} "
        "describes; save both again, or use AttentionMask.load and sparsify"
    )


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load_masks: {path} is not JSON: {error}") from error
    _check_note(path, note)
    if _REPLACES in note:
        _check_note(path, note[_REPLACES])
    if _SUM in note and note[_SUM] != sum_of_fields(note, but=_SUM):
        raise ValueError(
            f"load_masks: {path} has been changed, as it does not match its SHA-256 sum; save the "
            f"masks again, or take {_SUM!r} out of it if the change was meant"
        )
    return dict(note)


def _check_note(path: Path, note: Any) -> None:
    """Raise ValueError for what is no note, or one that this version does not understand."""
    version = note.get("format_version") if isinstance(note, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"load_masks: {path} has format version {version}, and this SparseBERT reads up to "
            f"{VERSION}; upgrade it"
        )
    for field, kind in _FIELDS.items():
        if not isinstance(note, dict) or type(note.get(field)) is not kind:
            raise ValueError(f"load_masks: {path} has no valid {field!r}; save the masks again")
    if unknown := note.keys() - {*_FIELDS, "positions", _REPLACES, _SUM}:
        raise ValueError(
            f"load_masks: {path} has unknown fields {sorted(unknown)}; save the masks again"
        )
    for field in ("format_version", "attention_modules"):
        if note[field] < 1:
            raise ValueError(f"load_masks: {path} has no valid {field!r}; save the masks again")
    if not registry.is_known(note["backend"]):
        raise ValueError(f"load_masks: {path} names an unknown backend {note['backend']!r}")
    if note.get("positions", POSITIONS[0]) not in POSITIONS:
        raise ValueError(f"load_masks: {path} has no valid 'positions'; save the masks again")
