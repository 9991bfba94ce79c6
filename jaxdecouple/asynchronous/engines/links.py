"""A link joins two processes of this machine: a socket, and for long arrays memory that both of them have.

The memory is a file without a name, and the socket has none either: nothing is left of them when their processes end,
however they end. Each end writes in a half of its own, and not before its last arrays there were read: so at most one
message with arrays is under way in each direction, which an exchange of requests and answers sees to.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import tempfile
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

_ALIGNED = 64  # bytes; what XLA needs of an array that it does not copy
_SMALL = 512  # bytes; a shorter array goes by the socket


class Link:
    """One end of a link."""

    def __init__(self, descriptor: int, memory: int, *, upper: bool):
        """An end, from the file descriptors of `pair`.

        Args:
          descriptor: of the socket; given up.
          memory: of the shared memory; given up.
          upper: which of the ends this is.
        """
        self.pipe = Connection(descriptor)
        self._memory = memoryview(mmap.mmap(memory, 0))
        os.close(memory)
        half = len(self._memory) // 2
        self._mine, self._other = (half, 0) if upper else (0, half)
        self._room = half

    @staticmethod
    def pair(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """File descriptors of both ends, the lower one first, of a link for arrays of so many bytes in all."""
        size = max(-(-size // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        with tempfile.TemporaryFile(dir=in_memory()) as file:
            file.truncate(2 * size)
            memories = os.dup(file.fileno()), os.dup(file.fileno())
        one, other = socket.socketpair()
        return (one.detach(), memories[0]), (other.detach(), memories[1])

    def fileno(self) -> int:
        """Of the socket, for a selector."""
        return self.pipe.fileno()

    def send(self, value: Any, *, by_socket: bool = False) -> None:
        """Sends anything; arrays by the memory, as far as they have room there, unless all is to go by the socket."""
        places, end = [], 0

        def put(buffer: pickle.PickleBuffer) -> bool:
            nonlocal end
            raw = buffer.raw()
            if by_socket or raw.nbytes < _SMALL or end + raw.nbytes > self._room:
                return True  # in the message itself
            self._memory[self._mine + end : self._mine + end + raw.nbytes] = raw
            places.append((end, raw.nbytes))
            end += -(-raw.nbytes // _ALIGNED) * _ALIGNED
            return False

        content = pickle.dumps(value, protocol=5, buffer_callback=put)
        self.pipe.send_bytes(pickle.dumps((places, content)))

    def receive(self) -> Any:
        """What the other end sent; arrays are valid until this end sends something.

        Raises:
          EOFError: the other end is closed.
        """
        places, content = pickle.loads(self.pipe.recv_bytes())
        at = [(self._other + begin, self._other + begin + size) for begin, size in places]
        return pickle.loads(content, buffers=[self._memory[begin:end].toreadonly() for begin, end in at])

    def close(self) -> None:
        """Closes this end."""
        self.pipe.close()


def give(pipe: Connection, ends: tuple[int, int], pid: int) -> None:
    """Hands file descriptors to another process over a socket, and closes them here."""
    for descriptor in ends:
        reduction.send_handle(pipe, descriptor, pid)
        os.close(descriptor)


def take(pipe: Connection) -> tuple[int, int]:
    """The file descriptors that `give` sent."""
    return reduction.recv_handle(pipe), reduction.recv_handle(pipe)


def in_memory() -> str | None:
    """A directory in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
