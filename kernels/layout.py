"""How the arrays of a program are laid out: what the packing writes and the kernels read.

Plain numbers, so that tiles can be packed where there is no Triton; `work_item.py` has them as the
kernels take them.
"""

from __future__ import annotations

WORD_COLUMNS = 32
"""Columns that one word of a row covers."""

COLUMN_PAD = 128
"""Column lists are padded to a multiple of this; no kernel takes a longer step."""

PACKED_HEIGHTS = (128, 64, 32, 16)
"""Tile heights, in the order in which work items are sorted, and launched."""

WORD_ORDER = tuple(
    8 * octet + 2 * pair + i for pair in range(4) for octet in range(4) for i in range(2)
)
"""Which of its columns each bit of a word is for, lowest bit first.

Tensor cores give a thread columns 8 j + 2 (lane % 4) + {0, 1}; theirs are one byte of the word, so
that the thread tests constant bits (`primitives.mask_by_words`).
"""

# The fields of a work item, int64: a tile, run for one head.
ROW_START = 0  # where its rows begin, in `rows` and `slots`
COL_START = 1  # where its gathered columns begin, in `cols`
WORD_START = 2  # where its words begin, in `words`
WORD_COL = 3  # the first of its columns that has words
FULL = 4  # how many leading columns every row attends to
WIDTH = 5  # how many columns it has, without padding
HEAD = 6  # the head; the first of them, if one list serves all heads
SLOT_BASE = 7  # what to add to its `slots` for this head; -1 if it alone covers all its rows
ITEM_FIELDS = 8

# The fields of an entry of `merges`, int32: a row that no tile covers, or several.
MERGE_HEAD = 0
MERGE_ROW = 1
MERGE_FIRST = 2  # its first partial result
MERGE_COUNT = 3  # how many there are, next to each other
MERGE_FIELDS = 4
