"""A connection between rank 0 and every other rank that carries next to nothing: its end says at once that a rank has ended, or that its
host cannot be reached.

The kernels of both hosts keep asking whether the other is there (TCP keepalive). So a rank that is slow, starved or stopped is not given
up, that is the watchdog's affair; a pulled cable or a host without power is noticed after SILENCE seconds, although the collectives would
wait for minutes. Rank 0 hears of every loss, says it once, and tells the rest; all end. Who loses rank 0 itself ends too.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from trainer.launcher import rank_in_environment, ranks_in_environment

SILENCE = 20  # seconds without an answer from the other host's kernel
ARRIVAL = 300  # seconds in which all ranks must have come to rank 0's port
GATHERING = 2.0  # seconds in which rank 0 waits for more losses: all ranks of a lost host are named together
_tied: list["Lifeline"] = []  # at most one, as there is one process group in a process


class Lifeline:
    """This process's side of the connections; created by `tie`."""

    def __init__(self, rank: int, hosts: list[str], peers: dict[int, socket.socket]) -> None:
        """hosts: of each rank. peers: on rank 0 a connection to every other rank, on the others one to rank 0."""
        self._rank, self._hosts, self._peers = rank, hosts, peers
        self._verdict: tuple[int, str] | None = None
        self._known = threading.Event()
        self._lock = threading.Lock()
        for peer in peers.values():
            _ask_often(peer)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def say(self, status: int, text: str) -> None:
        """This rank ends: rank 0 passes it on and speaks for all. Returns when that is done, or nobody answers."""
        if self._rank == 0:
            self._decide(status, text)
        elif not self._known.wait(1.0):  # what ends every rank, rank 0 says itself
            with contextlib.suppress(OSError):
                self._peers[0].sendall(_packed(status, text))
            self._known.wait(SILENCE + 2 * GATHERING)

    def wait_for_verdict(self) -> int | None:
        """A collective failed: why is known here in a moment. Returns the status to end with; None when the lifelines hold."""
        return self._verdict[0] if self._known.wait(SILENCE + 2 * GATHERING) and self._verdict else None

    def untie(self) -> None:
        """The run is over; ranks may go."""
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_packed(0, ""))

    def _watch(self) -> None:
        losses: dict[int, str] = {}
        since = 0.0
        with selectors.DefaultSelector() as waiting:
            for rank, peer in self._peers.items():
                waiting.register(peer, selectors.EVENT_READ, rank)
            while waiting.get_map() and not self._known.is_set():
                for key, _ in waiting.select(0.2):
                    try:
                        status, text = _unpacked(self._peers[key.data])
                    except (EOFError, ConnectionResetError, BrokenPipeError):
                        losses[key.data] = "has ended: killed, or out of memory"
                    except OSError:
                        losses[key.data] = "cannot be reached: look at its power, cable and network"
                    else:
                        if status:
                            self._end(status, text, speak=self._rank == 0)
                    waiting.unregister(key.fileobj)
                if losses and not since:
                    since = time.monotonic()
                if losses and (time.monotonic() - since > GATHERING or len(losses) == len(self._peers)):
                    self._lost(losses)

    def _lost(self, losses: dict[int, str]) -> None:
        reasons = sorted({(reason, ", ".join(self._name(rank) for rank in losses if losses[rank] == reason)) for reason in losses.values()})
        text = "; ".join(f"{names} {reason}" for reason, names in reasons)
        if len(losses) > 1 and len(losses) == len(self._peers):
            text += f"; or it is {self._hosts[self._rank]} that is cut off"
        if self._rank == 0:
            self._end(1, text)
        elsewhere = [rank for rank, host in enumerate(self._hosts) if host != self._hosts[0]]
        self._end(1, text, speak=self._rank == (elsewhere or [1])[0])

    def _end(self, status: int, text: str, speak: bool = True) -> None:
        """End this process. The main thread may be stuck in a collective: no orderly end is possible."""
        if speak:
            self._decide(status, text)
        self._verdict = (status, text)
        self._known.set()
        time.sleep(0.5)  # whoever waits in `say` or `wait_for_verdict` ends by itself
        os._exit(status)

    def _decide(self, status: int, text: str) -> None:
        with self._lock:
            if self._verdict:
                return
            self._verdict = (status, text)
        print(f"error: {text}", file=sys.stderr, flush=True)
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_packed(status, text))
        time.sleep(0.2)  # what was sent leaves before the connections end with this process

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"


@contextlib.contextmanager
def arriving() -> Iterator[None]:
    """Around the making of the process group, which would wait for its own, longer limit: ends this process with status 1 when a rank does
    not come in ARRIVAL seconds, e.g. because its host cannot be reached."""
    rank, size = rank_in_environment(), ranks_in_environment()

    def give_up() -> None:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if "MASTER_PORT" in os.environ else "rank 0"
        print(
            f"error: rank {rank} on {socket.gethostname()}: after {ARRIVAL:g} s not all {size} ranks have come to {place}; "
            f"see which host cannot: python -m trainer.doctor --hostfile HOSTFILE",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(ARRIVAL + 15 * (rank > 0), give_up)  # after rank 0 has spoken the launcher ends the others
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def tie(rank: int, world_size: int, gather: Callable[[Any], list[Any]]) -> None:
    """Collective. gather: the small object of every rank, on every rank."""
    hosts = gather(socket.gethostname())
    if world_size == 1:
        return
    server = _listening(world_size) if rank == 0 else None
    port = gather(server.getsockname()[1] if server else 0)[0]
    peers: dict[int, socket.socket] = {}
    if server:
        server.settimeout(60)
        while len(peers) < world_size - 1:
            peer, _ = server.accept()
            peers[struct.unpack("!i", _exactly(peer, 4))[0]] = peer
        server.close()
    else:
        peers[0] = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=60)
        peers[0].settimeout(None)
        peers[0].sendall(struct.pack("!i", rank))
    _tied.append(Lifeline(rank, hosts, peers))


def _listening(backlog: int) -> socket.socket:
    """At a free port, for IPv6 as well where the host has it: that may be what MASTER_ADDR is."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def tied() -> Lifeline | None:
    """This process's lifeline, if there is one."""
    return _tied[0] if _tied else None


def _ask_often(peer: socket.socket) -> None:
    """Let the kernel give the other host up after SILENCE seconds without an answer."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENCE // 5 - 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)  # the same when something was sent


def _packed(status: int, text: str) -> bytes:
    data = text.encode()
    return struct.pack("!ii", status, len(data)) + data


def _unpacked(peer: socket.socket) -> tuple[int, str]:
    status, size = struct.unpack("!ii", _exactly(peer, 8))
    return status, _exactly(peer, size).decode()


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
