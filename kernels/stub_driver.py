"""A stand-in for the CUDA driver: launches go all the way to it, and end there."""

from __future__ import annotations

import types
from collections.abc import Callable

from .codegen import TARGETS


class StubDriver:
    """Knows its target, loads nothing, launches nothing.

    For the host's side of a launch where there is no GPU: `triton.runtime.driver.set_active` takes
    it, with `TRITON_INTERPRET` unset, and kernels are compiled for sm_90. Tensors stay on the CPU;
    what asks for their architecture has to be told ("sm90").
    """

    utils = types.SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448},
        load_binary=lambda *arguments: (1, 1, 32, 0, 1024),
    )

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        """A launcher that does nothing."""
        return lambda *arguments: None

    def get_current_target(self) -> object:
        """sm_90."""
        return TARGETS["sm90"]

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0
