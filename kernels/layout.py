"""How the arrays of a program are laid out: what the packing writes and the kernels read.

Plain numbers, so that tiles can be packed where there is no Triton; `work_item.py` has them as the
kernels take them.
"""

from __future__ import annotations

WORD_COLUMNS = 32
"""Columns that one word of a row covers."""

COLUMN_PAD = 128
"""Column lists are padded to a multiple of this; no kernel takes a longer step."""

LOOK_AHEAD = 2 * COLUMN_PAD
"""Columns behind the last list that may be read, and must be columns: loops read ahead."""

WORDS_AHEAD = COLUMN_PAD // WORD_COLUMNS * 128
"""Words behind the last ones that may be read, whatever they are."""

NEAR = 2**28
"""Rows of a head that span no more elements than this have offsets of 32 bits in bytes, too."""

PACKED_HEIGHTS = (128, 64, 32, 16)
"""Tile heights, in the order in which work items are sorted, and launched."""

WORD_ORDER = tuple(
    8 * octet + 2 * pair + i for pair in range(4) for octet in range(4) for i in range(2)
)
"""Which of its columns each bit of a word is for, lowest bit first.

Tensor cores give a thread columns 8 j + 2 (lane % 4) + {0, 1}; theirs are one byte of the word, so
that the thread tests constant bits (`primitives.mask_by_words`).
"""

# The record of a work item (a tile, run for one head), int32: a header, the row of each slot, and
# the `slots` beside them. A program has all that it needs to load queries and columns after one
# trip to memory, and keys after the second.
COL_START = 0  # where its gathered columns begin in `cols`, in units of `COL_UNIT`
WORD_START = 1  # where its words begin in `words`, in units of `WORD_UNIT`
WORD_COL = 2  # the first of its columns that has words
FULL = 3  # how many leading columns every row attends to
WIDTH = 4  # how many columns it has, without padding
HEAD = 5  # the head; the first of them, if one list serves all heads
SLOT_BASE = 6  # what to add to its `slots` for this head; -1 if no row of it goes to scratch
CONTINUES = 7  # whether it goes on from what an earlier launch left of some of its rows
HEADER_FIELDS = 8

RECORD_UNIT = 8  # its size is a multiple of this, in which `Group.first` counts
COL_UNIT = WORD_COLUMNS
WORD_UNIT = 16

# What `slots` say of a row beside its place in scratch, which is twice the number of the partial
# result, and one more unless that is the row's first.
FINAL = -1  # the tile covers the row alone, or is the first of two: its result is written out
CONTINUED = -2  # the tile is the second of two, and goes on from what was written out

# The fields of an entry of `merges`, int32: a row that no tile covers, or several at once.
MERGE_HEAD = 0
MERGE_ROW = 1
MERGE_FIRST = 2  # its first partial result
MERGE_COUNT = 3  # how many there are, next to each other
MERGE_FIELDS = 4


def record_size(height: int) -> int:
    """Numbers in the record of a tile of so many rows."""
    return HEADER_FIELDS + 2 * height
