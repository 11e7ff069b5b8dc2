"""The ranks of several hosts meet as they will in a run: how fast they add, and whether they share the run folder.

trainer.doctor starts it on every host, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set:   python -m trainer.meeting RUN
"""

import json
import sys
from pathlib import Path

from trainer import accelerator  # before DeepSpeed is imported

# isort: split
from trainer import engine as engines
from trainer.ranks import Ranks, run_on_ranks
from trainer.storage import Storage

MEGABYTES = 16


def main() -> None:
    accelerator.repeat_exactly()
    engines.start(timeout_minutes=0.75)
    ranks = Ranks.current()
    storage = Storage(Path(sys.argv[1]), ranks)
    speed = ranks.bandwidth(MEGABYTES)
    if ranks.is_main:
        print("facts " + json.dumps({"bytes_per_second": speed, "separate": storage.separate, "storage": storage.describe()}), flush=True)


if __name__ == "__main__":
    run_on_ranks(main)
