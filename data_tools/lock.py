"""One command at a time in an output folder: an interrupted run's ranks may still be saving when the next start comes."""

import fcntl
import os
import socket
import time
from pathlib import Path

from data_tools.errors import UserError

WAIT_SECONDS = 60.0
_held: dict[Path, int] = {}  # file descriptors; the kernel lets go of the lock when the process ends, however it ends


def hold(folder: Path) -> None:
    """Hold FOLDER/lock (flock) until this process ends. Waits a minute for another holder to end; then raises UserError that names it."""
    path = folder.resolve() / "lock"
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            if deadline is None:
                deadline = time.monotonic() + WAIT_SECONDS
                print(f"{folder} is held by {holder}; waiting for it to end", flush=True)
            elif time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(f"{folder}: {holder} is at work there; end it, or choose another --output-dir") from None
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[path] = descriptor
