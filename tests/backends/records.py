"""The records of work items, taken apart."""

import numpy as np

from sparsebert.kernels import layout


def records_of(side):
    """(group, header, rows, slots) of each work item, in the order of launches."""
    found = []
    for number, group in enumerate(side.groups):
        size = layout.record_size(group.height)
        first = group.first * layout.RECORD_UNIT
        for record in side.records[first : first + group.items * size].numpy().reshape(-1, size):
            ends = layout.HEADER_FIELDS + np.array([0, 1]) * group.height
            found.append((number, *np.split(record, ends)))
    return found
