"""A plugin for pytest: the native kernels run on four threads of `joined_threads.cpp`.

torch itself has one all the time (OMP_NUM_THREADS=1), which it takes without its pool.
"""

import ctypes
import dataclasses
from pathlib import Path

import torch

from sparsebert.kernels.cpu import library

_pool = ctypes.CDLL(str(Path(__file__).with_name("libjoined_threads.so")))
_address = ctypes.cast(_pool.joined_threads, ctypes.c_void_p).value
_found = library.load()
assert _found.library is not None, _found.reason
_found = dataclasses.replace(_found, parallel_for=_address)
library.load = lambda: _found
torch.get_num_threads = lambda: 4
torch.set_num_threads = lambda number: None
