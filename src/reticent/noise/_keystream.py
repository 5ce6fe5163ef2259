"""A secret stream of bytes, each handed out at most once: AES-256 in counter mode.

Room: noise. May import `cryptography` and `reticent.errors`; no torch.

The key goes straight into the cipher (OpenSSL's memory) and is kept nowhere else, so no repr,
pickle, attribute or traceback of ours can show it.

Sources:
    [1] NIST SP 800-38A, section 6.5 (CTR mode).
"""

import os
import threading
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from reticent.errors import StepError

KEY_BYTES = 32
_PIECE_BYTES = 1 << 20  # zeros encrypted per call to the cipher


class Keystream:
    """AES-256-CTR over zeros, from block 0 on. It can only go forward.

    Guarantee:
        No byte of the stream is handed out twice by one process: reading and advancing happen
        under one lock, a copy or a pickle is refused, and so is a read in a forked child (which
        would repeat the parent's bytes).
    """

    __slots__ = ("_encryptor", "_lock", "_pid", "_position", "_zeros")

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._position = 0
        self._zeros = memoryview(bytes(_PIECE_BYTES))

    @property
    def position(self) -> int:
        """Bytes handed out so far; only ever grows."""
        return self._position

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer`, one contiguous view of writable bytes, with the next bytes of the stream.

        Raises:
            StepError[noise-forked]: this process was forked from the one that made the stream.
        """
        if os.getpid() != self._pid:  # before the lock, which the fork may have copied locked
            raise StepError(
                "This noise source was made in another process, and a forked copy would repeat its "
                "noise. Make a new source in each process: CipherNoise.fresh().",
                code="noise-forked",
            )
        with self._lock:
            for start in range(0, len(buffer), _PIECE_BYTES):
                piece = buffer[start : start + _PIECE_BYTES]
                self._position += len(piece)  # spent even if the cipher should fail
                self._encryptor.update_into(self._zeros[: len(piece)], piece)

    def __repr__(self) -> str:
        return f"Keystream(position={self._position})"

    def __reduce__(self) -> NoReturn:
        refuse_copy()


def refuse_copy() -> NoReturn:
    """Raise StepError[noise-copied]."""
    raise StepError(
        "A noise source cannot be copied, pickled or saved: the copy would repeat its noise, and "
        "repeated noise can be subtracted. Make a new one where it is needed: CipherNoise.fresh().",
        code="noise-copied",
    )
