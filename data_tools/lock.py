"""One command at a time in an output folder: an interrupted run's ranks may still be saving when the next one starts."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from data_tools.errors import UserError

WAIT_SECONDS = 60.0
FAR_SECONDS = 150.0  # for a holder on another host: NFS 4 releases the locks of a host that died when its lease ends, usually after 90 s
_held: dict[Path, int] = {}  # file descriptors; the kernel releases the lock when the process ends, however it ends
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def hold(folder: Path) -> None:
    """Hold FOLDER/lock (flock) until `release` or the end of this process. Waits a minute for another holder, two and a half for one on
    another host, then raises a UserError that names it.

    Makes the folder when it is missing. On a file system without locks it says so and goes on.
    """
    path = folder.resolve() / "lock"
    if path in _held:
        return
    deadline = None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            far = bool(holder) and not holder.endswith(f" on {socket.gethostname()}")
            if deadline is None:
                deadline = time.monotonic() + (FAR_SECONDS if far else WAIT_SECONDS)
                print(f"{folder} is held by {holder}; waiting for it to end", flush=True)
            elif time.monotonic() > deadline:
                ended = f"; if that host is down, remove {path}" if far else ""
                raise UserError(f"{folder}: {holder} is at work there; end it, or choose another --output-dir{ended}") from None
            time.sleep(0.2)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            print(f"{folder}: its file system has no locks ({error.strerror}); make sure that nothing else works there", flush=True)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # its holder has removed it since we opened it
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[path] = descriptor


def release(folder: Path) -> None:
    """Release what `hold` holds, and remove the file."""
    path = folder.resolve() / "lock"
    if path in _held:
        path.unlink(missing_ok=True)
        os.close(_held.pop(path))
