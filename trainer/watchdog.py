"""Two threads in every rank that notice when nothing goes on any more, say which rank is to blame, and end the process.

A collective that waits for a hung rank waits in silence, and the time limit of the process group names nobody. So each rank publishes how
far it is in a key-value store apart from the process group's, which may itself be stuck. A rank that reports nothing new has been stopped,
or its host is gone; else the rank that is furthest behind is the one that the others wait for. The store lives in rank 0 and a call to it
has no end when that is stopped, hence two threads: one exchanges news, the other judges by what has come.
"""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import TCPStore

from trainer import lifeline
from trainer.ranks import Ranks

FAREWELL = 4.0  # seconds until a rank ends that knows of the standstill: all know by then, and one has spoken


@dataclass
class _News:
    """The last that was heard of a rank."""

    sign: int = -1
    """Grows while the process lives."""
    count: int = -1
    """Grows with its progress."""
    doing: str = "starting"
    host: str = "?"
    heard: float = field(default_factory=time.monotonic)
    """When the sign last changed, on our clock."""


class Watchdog:
    """More than `limit` seconds without a `Ranks.beat` or a new collective end this process with status 1."""

    def __init__(self, ranks: Ranks, limit: float) -> None:
        """Collective. limit: seconds."""
        self._rank, self._pulse, self._limit, self._interval = ranks.rank, ranks.pulse, limit, min(5.0, limit / 10)
        self._news = [_News() for _ in range(ranks.world_size)]
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False) if ranks.is_main else None
        port = ranks.gather(store.port if store else 0)[0]
        self._store = store or TCPStore(address, port, is_master=False, wait_for_workers=False)
        self._store.set(str(self._rank), self._report(0))
        ranks.barrier()
        self._over = threading.Event()
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """The run is over; what follows may last."""
        self._over.set()

    def _report(self, sign: int) -> str:
        return json.dumps([sign, self._pulse.count, self._pulse.doing, socket.gethostname()])

    def _stands_still(self) -> bool:
        return time.monotonic() - self._pulse.since > self._limit and not self._over.is_set()

    def _exchange(self) -> None:
        sign, keys = 0, [str(rank) for rank in range(len(self._news))]
        while not self._over.wait(self._interval):
            sign += 1
            try:
                self._store.set(str(self._rank), self._report(sign))
                answers = self._store.multi_get(keys)
            except RuntimeError:  # rank 0 has ended; the process group or the launcher ends us soon, or else the judge
                return
            for rank, answer in enumerate(answers):
                news: list[Any] = json.loads(answer)
                if news[0] != self._news[rank].sign:
                    self._news[rank] = _News(*news)

    def _judge(self) -> None:
        while not self._over.wait(self._interval):
            if self._stands_still():
                time.sleep(2 * self._interval)  # the last news from before the standstill arrive
                if self._stands_still():
                    self._end()

    def _end(self) -> None:
        suspects, why = self._suspects()
        speaker = min((rank for rank in range(len(self._news)) if rank not in suspects), default=0)
        line = lifeline.tied()
        if self._rank == speaker:
            named = ", ".join(f"rank {rank} on {self._news[rank].host}" for rank in suspects)
            text = f"no progress for {self._limit:g} s: {named} {why}"
            if line and speaker == 0:
                line.say(1, text)  # ends everyone
            else:
                print(f"error: {text}", file=sys.stderr, flush=True)
        elif speaker == 0:
            time.sleep(3 * self._interval)  # rank 0 may judge later, and its word ends us
        time.sleep(FAREWELL)
        if line:
            line.untie()  # this end is no news
        os._exit(1)  # the main thread is stuck: no orderly end is possible

    def _suspects(self) -> tuple[list[int], str]:
        """The ranks to blame, and why."""
        now, silence, everyone = time.monotonic(), 5 * self._interval, range(len(self._news))
        silent = [rank for rank in everyone if rank != self._rank and now - self._news[rank].heard > silence]
        if silent and len(silent) == len(self._news) - 1 and self._rank:
            silent = [0]  # without rank 0 nobody hears of anybody
        if silent:
            return silent, "does not answer: the process is stopped, or its host is gone"
        least = min(news.count for news in self._news)
        behind = [rank for rank in everyone if self._news[rank].count == least]
        if 1 < len(behind) == len(self._news):
            return behind, f"all stand at the same place ({self._news[0].doing}): look at the network between the hosts"
        return behind, f"hangs in {self._news[behind[0]].doing}"
