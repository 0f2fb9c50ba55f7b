"""A terminal for a program's output."""

import contextlib
import os
import pty
import termios
import threading
import typing as tp


class Terminal:
    """A terminal of 80 by 24; `shown` is complete after the `with` block."""

    def __enter__(self) -> tp.Self:
        self._screen, self.fd = pty.openpty()
        termios.tcsetwinsize(self.fd, (24, 80))
        self.name = os.ttyname(self.fd)
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the program's end is closed
            while chunk := os.read(self._screen, 4096):
                self._chunks.append(chunk)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self._reader.join()
        os.close(self._screen)

    @property
    def shown(self) -> str:
        return b"".join(self._chunks).decode()
