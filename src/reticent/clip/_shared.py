"""Inner products of an input that several matrices multiply, as queries', keys' and values' do: formed once.

Room: clip. May import torch, `reticent.rules`.
"""

from dataclasses import dataclass

from torch import Tensor

from reticent.rules import Form, Outer


@dataclass(frozen=True, slots=True, eq=False)
class _Last:
    x_UPI: Tensor  # held, so that its memory is not given to another tensor
    version: int
    gram: tuple[Tensor, ...]

    def is_of(self, x_UPI: Tensor) -> bool:
        """Whether a tensor is the same numbers in the same place, and nobody wrote to them since."""
        mine = self.x_UPI
        return (
            x_UPI.data_ptr() == mine.data_ptr()
            and (x_UPI.shape, x_UPI.stride()) == (mine.shape, mine.stride())
            and (x_UPI.dtype, x_UPI.device) == (mine.dtype, mine.device)
            and x_UPI._version == mine._version == self.version
        )


class SharedInputs:
    """Settles forms, one after another as a backward meets them; the last input's products are remembered.

    A write that torch keeps no version of (by `.data`) would not be noticed. So whoever lets the model run
    between two forms has to call `forget` first.

    Args:
        remember: False to settle each form by itself.
    """

    def __init__(self, *, remember: bool = True) -> None:
        self._last: _Last | None = None
        self._remember = remember

    def settle(self, form: Form, method: str) -> tuple[Tensor, Form]:
        """`form.settle(method)`; the same numbers, bit for bit."""
        if not isinstance(form, Outer):  # a bias, say, between queries and keys
            return form.settle(method)
        if not (self._remember and method == "gram" and _is_shareable(form)):
            self._last = None
            return form.settle(method)
        x_UPI = form.x_UPI
        if self._last is None or not self._last.is_of(x_UPI):
            self._last = None  # let go first: two are never held
            self._last = _Last(x_UPI, x_UPI._version, form.input_gram())
        return form.settle_gram(self._last.gram)

    def forget(self) -> None:
        """Let go of what is remembered."""
        self._last = None


def _is_shareable(form: Outer) -> bool:
    """Whether there is anything to share, and an address and a version that tell one tensor from another."""
    x_UPI = form.x_UPI
    plain = type(x_UPI) is Tensor and not x_UPI.is_inference() and x_UPI.dtype == form.g_UPO.dtype
    return plain and x_UPI.shape[1] > 1 and x_UPI.data_ptr() != 0
