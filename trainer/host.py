"""What one host has, as JSON: trainer.doctor runs this on every host.   python -m trainer.host '{"master": ADDRESS, ...}'"""

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from data_tools.corpus import Corpus
from data_tools.errors import UserError
from trainer import run_folder
from trainer.installation import installed
from trainer.plan import begun_config
from trainer.recipe import Recipe
from trainer.storage import nearest_folder
from trainer.surgery import check_ingredients, load_seed_config


def facts(asked: dict[str, Any]) -> dict[str, Any]:
    """asked: `master`, the first host's address; `port`, which rank 0 will listen at; `recipe`; `init_from`, the checkpoint that the run
    begins from, or None."""
    import torch  # takes seconds, and may be what is broken

    from trainer.accelerator import gpu_devices, has_bf16

    recipe = Recipe.model_validate(asked["recipe"])
    place = nearest_folder(recipe.output_dir)
    address = address_towards(asked["master"])
    found: dict[str, Any] = {
        **installed(), "gpu_devices": gpu_devices(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "without_bf16": [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()) if not has_bf16(torch.device("cuda", index))
        ],
        "cores": len(os.sched_getaffinity(0)), "memory": available_memory(), "address": address, "interface": interface_of(address),
        "infiniband": any(name.startswith("ib") for _, name in socket.if_nameindex()),
        "port_free": port_is_free(asked["port"]) if address == asked["master"] else None,
        "gpu_memory": [free_gpu_memory(index) for index in range(torch.cuda.device_count())],
        "disk": shutil.disk_usage(place).free, "checkpoints": size_of(recipe.output_dir / "checkpoints"),
        "writable": os.access(place, os.W_OK), "corpus": None, "corpus_problem": None,
        "seed_problem": None, "run_problem": None,
    }  # fmt: skip
    try:
        if begun_config(recipe) is None:  # else it needs no seed any more
            if address == asked["master"] and not asked["init_from"]:  # surgery is rank 0's
                check_ingredients(recipe.seed_model, recipe.surgery)
            else:
                load_seed_config(recipe.seed_model)
    except UserError as error:
        found["seed_problem"] = str(error)
    try:
        corpus = Corpus.open(recipe.corpus)
        found["corpus"] = f"{corpus.fingerprint[:12]}, its data {corpus.sample_digest()[:12]}"
    except UserError as error:
        found["corpus_problem"] = str(error)
        return found
    try:
        run_folder.refuse_file(recipe.output_dir)
        run_folder.find(recipe, corpus, "auto", asked["init_from"] and Path(asked["init_from"]))
    except UserError as error:
        found["run_problem"] = str(error)
    return found


def size_of(folder: Path) -> int:
    """Bytes of the files below, each counted once however many links it has; 0 where there is none."""
    found = {(status.st_dev, status.st_ino): status.st_size for path in folder.rglob("*") if path.is_file() for status in [path.stat()]}
    return sum(found.values())


def available_memory() -> int:
    """Bytes that programs can have: free ones, and those of files that the kernel keeps for as long as nobody wants them."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_gpu_memory(index: int) -> int:
    """Bytes; none of a GPU that does not answer, such as one that another process has for itself."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(index)[0])
    except RuntimeError:
        return 0


def address_towards(other: str) -> str:
    """Our address on the way to another host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))
        return probe.getsockname()[0]


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; empty when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def port_is_free(port: int) -> bool:
    """Whether rank 0 could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return False
    return True


if __name__ == "__main__":
    print("facts " + json.dumps(facts(json.loads(sys.argv[1]))))
