"""The mask file: what is written comes back, and nothing damaged or foreign is read."""

import hashlib
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from sparsebert import patterns
from sparsebert.masks import AttentionMask
from sparsebert.masks.file import MASK_FILE, MaskFileError

KEY = MASK_FILE.key
PROVENANCE = {"pattern": "mine", "rate": 0.1, "note": "Grüße \u2603", "steps": [1, None, True]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.safetensors"


def a_mask(*shape: int) -> AttentionMask:
    dense = torch.rand(shape or (2, 3, 4, 11)) < 0.5
    return AttentionMask.from_dense(dense, provenance=PROVENANCE)


def refuse(path, message):
    with pytest.raises(MaskFileError, match=message) as caught:
        AttentionMask.load(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(lambda x: abs(x) != float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=4, max_dims=4, max_side=10)),
    st.dictionaries(st.text(), json_values, max_size=4),
)
def test_what_is_saved_is_loaded(tmp_path_factory, array, provenance):
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    mask = AttentionMask.from_dense(array, provenance=provenance)
    mask.save(path)
    again = AttentionMask.load(str(path))
    assert again == mask
    assert again.provenance == provenance
    assert again.fingerprint == mask.fingerprint
    assert not again.bits.flags.writeable


def test_the_file_is_what_the_documentation_says(path):
    mask = a_mask()
    mask.save(path)
    with safe_open(path, "np") as file:
        assert list(file.keys()) == ["bits"]
        assert np.array_equal(file.get_tensor("bits"), mask.bits)
        header = json.loads(file.metadata()[KEY])
    assert (
        header.pop("header_sha256")
        == hashlib.sha256(
            json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()
    )
    assert header == {
        "version": 1,
        "shape": [2, 3, 4, 11],
        "provenance": PROVENANCE,
        "sha256": hashlib.sha256(mask.bits.tobytes()).hexdigest(),
    }
    assert path.stat().st_size < mask.bits.nbytes + 1000


def test_a_large_mask_takes_a_bit_a_position(path):
    mask = patterns.random(1024, density=0.3, num_heads=12)
    mask.save(path)
    assert path.stat().st_size < 12 * 1024 * 1024 // 8 + 1000
    assert AttentionMask.load(path) == mask


# -------------------------------------------------------------------- damage


def test_a_change_of_any_byte_is_refused(path):
    mask = a_mask()
    mask.save(path)
    good = path.read_bytes()
    harmless = []
    for at in range(len(good)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            try:
                again = AttentionMask.load(path)
            except MaskFileError:
                continue
            assert again == mask
            assert again.provenance == mask.provenance
            harmless.append(good[at : at + 1])
    # Only the case of a hexadecimal digit in a JSON escape (as in \u00fc) means nothing.
    assert b"".join(harmless) == b"fcdf"


def test_a_file_cut_anywhere_is_refused(path):
    a_mask().save(path)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        refuse(path, "truncated")


def test_bytes_after_the_end_are_refused(path):
    a_mask().save(path)
    path.write_bytes(path.read_bytes() + b"\0")
    refuse(path, "followed by foreign bytes: [0-9]+ bytes where [0-9]+ are expected")


def test_exchanged_bits_are_named(path):
    mask = a_mask()
    mask.save(path)
    good = path.read_bytes()
    path.write_bytes(good[: -mask.bits.nbytes] + (~mask).bits.tobytes())
    refuse(path, "altered: the bits do not match their SHA-256 sum")


def test_an_edited_story_is_named(path):
    a_mask().save(path)
    path.write_bytes(path.read_bytes().replace(b"mine", b"ours"))
    refuse(path, "altered: the header does not match its SHA-256 sum")


# -------------------------------------------------------------------- foreign files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or not a mask file: 0 bytes"),
        (b"hello", "truncated or not a mask file: 5 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a mask file: it does not start as"),
        (b'{"json": true}' * 10, "not a mask file"),
        (pickle.dumps(np.eye(8, dtype=bool)), "not a mask file"),
        ((40).to_bytes(8, "little") + b"x" * 60, "not a mask file"),
        ((4).to_bytes(8, "little") + b"[[]]" + bytes(60), "not a mask file"),
        (b"\xff" * 100, "not a mask file"),
        (bytes(100), "not a mask file"),
        (to_safetensors({"bits": np.zeros((1, 1, 8, 1), np.uint8)}), "metadata has no"),
        (to_safetensors({"weight": np.zeros(4)}, metadata={"format": "pt"}), "metadata has no"),
        ((100000).to_bytes(8, "little") + b"[" * 100000, "not a mask file"),
    ],
)
def test_foreign_files_are_refused(path, content, message):
    path.write_bytes(content)
    refuse(path, message)


def test_a_missing_file_is_missing(path):
    with pytest.raises(FileNotFoundError):
        AttentionMask.load(path)


def crafted(tensors=None, drop=(), container=None, **fields):
    """A file whose sums are right but whose fields are not."""
    bits = np.full((1, 1, 4, 2), 0b1, np.uint8)
    header = {"version": 1, "shape": [1, 1, 4, 9], "provenance": {}}
    header["sha256"] = hashlib.sha256(bits.tobytes()).hexdigest()
    header.update(fields)
    for name in drop:
        del header[name]
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    header["header_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    metadata = {KEY: json.dumps(header)} if container is None else container
    return to_safetensors({"bits": bits} if tensors is None else tensors, metadata=metadata)


def test_the_crafted_file_is_good_where_nothing_is_wrong(path):
    path.write_bytes(crafted())
    assert AttentionMask.load(path).shape == (1, 1, 4, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (crafted(version=2), "has format version 2 but .* reads up to 1; upgrade sparsebert"),
        (crafted(version=2, drop=["sha256"], new=1), "upgrade sparsebert"),
        (crafted(version=0), "version is 0"),
        (crafted(version="1"), "version is '1'"),
        (crafted(version=True), "version is True"),
        (crafted(drop=["version"]), "version is None"),
        (crafted(drop=["provenance"]), "missing or unknown: provenance"),
        (crafted(extra=1), "missing or unknown: extra"),
        (crafted(provenance=[1]), "provenance is not an object"),
        (crafted(shape=[1, 4, 9]), r"shape is \[1, 4, 9\]"),
        (crafted(shape=[1, 1, 0, 9]), "not four positive integers"),
        (crafted(shape=[1, 1, -4, 9]), "not four positive integers"),
        (crafted(shape=[1, True, 4, 9]), "not four positive integers"),
        (crafted(shape=[1, 1, 4.0, 9]), "not four positive integers"),
        (crafted(shape="1149"), "not four positive integers"),
        (crafted(shape=[1, 1, 4, 17]), "mis-shaped"),
        (crafted(shape=[1, 1, 2, 9]), "mis-shaped"),
        (crafted(shape=[1, 2, 2, 9]), "mis-shaped"),
        (crafted(shape=[2**40, 2**40, 4, 9]), "mis-shaped"),
        (crafted(tensors={"bits": np.ones((1, 1, 4, 2), np.int8)}), "mis-shaped"),
        (crafted(tensors={"bits": np.ones((4, 2), np.uint8)}), "mis-shaped"),
        (crafted(tensors={"mask": np.ones((1, 1, 4, 2), np.uint8)}), r"tensors \['mask'\]"),
        (
            crafted(tensors={name: np.ones((1, 1, 4, 2), np.uint8) for name in ("bits", "more")}),
            r"tensors \['bits', 'more'\], not just",
        ),
        (crafted(sha256=None), "bits do not match"),
        (crafted(sha256="0" * 64), "bits do not match"),
        (crafted(container={KEY: "no json"}), "not a JSON object"),
        (crafted(container={KEY: "[]"}), "not a JSON object"),
    ],
)
def test_wrong_fields_are_named(path, content, message):
    path.write_bytes(content)
    refuse(path, message)


def test_set_padding_bits_are_refused(path):
    bits = np.full((1, 1, 4, 2), 0b10, np.uint8)  # key 9 of keys 0 ... 8
    sha = hashlib.sha256(bits.tobytes()).hexdigest()
    path.write_bytes(crafted(tensors={"bits": bits}, sha256=sha))
    refuse(path, "padding bits after key 8 are set")


# -------------------------------------------------------------------- writing


def test_saving_replaces_in_one_step(path, monkeypatch):
    old, new = a_mask(), a_mask()
    assert old != new
    old.save(path)

    def crash(source, target):
        assert AttentionMask.load(source) == new  # complete before it gets its name
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no power"):
            new.save(path)
    assert AttentionMask.load(path) == old
    assert os.listdir(path.parent) == [path.name]
    new.save(path)
    assert AttentionMask.load(path) == new
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_file_gets_the_usual_mode(path):
    a_mask().save(path)
    plain = path.with_name("plain")
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError):
        a_mask().save(tmp_path / "none" / "mask.safetensors")
