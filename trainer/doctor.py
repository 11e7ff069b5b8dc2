"""Would a run start on these hosts? One table, every failure with its remedy; exit status 0 only if it would.

    python -m trainer.doctor --hostfile hostfiles/lab [--corpus C] [--recipe R] [--set ...] [--ds-config D] [--output-dir RUN]

Also writes `.deepspeed_env` here: DeepSpeed's launcher forwards the variables in it, and almost nothing else, to the other hosts.
"""

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_tools import aside
from data_tools.corpus import Corpus
from data_tools.errors import UserError, run_command
from trainer import accelerator, run_folder  # noqa: F401  (accelerator: DeepSpeed warns where nobody has chosen)
from trainer.blocks import corpus_tokenizer, open_blocks
from trainer.checkpoint import Checkpoint
from trainer.ds_config import DeepSpeedConfig
from trainer.installation import installed
from trainer.launcher import read_hostfile
from trainer.plan import Plan, begun_config
from trainer.recipe import Recipe, load_recipe

ENVIRONMENT = Path(".deepspeed_env")
OURS = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # what `environment` sets
HERE = "localhost"
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
SKEW = 60.0
"""Seconds that clocks may differ: files of shared folders look older or younger than they are."""


@dataclass
class Findings:
    """What was found out, to be shown and to be judged."""

    failures: list[str] = field(default_factory=list)
    """What is wrong; what to do about it."""
    notes: list[str] = field(default_factory=list)

    def check(self, good: bool, where: str, wrong: str, remedy: str) -> None:
        if not good:
            self.failures.append(f"{where}: {wrong}; {remedy}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the hosts of a hostfile before a run.")
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/paper.yaml"))
    parser.add_argument("--ds-config", type=Path, default=Path("ds_configs/zero2_bf16.json"))
    parser.add_argument("--corpus", help="replaces the recipe's")
    parser.add_argument("--seed-model", help="replaces the recipe's")
    parser.add_argument("--output-dir", help="replaces the recipe's")
    parser.add_argument("--init-from", type=Path, metavar="CHECKPOINT", help="the weights to begin from, as for xpt.py")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="change a recipe entry, as for xpt.py")
    parser.add_argument("--master-port", type=int, default=29500, help="as given to `deepspeed --master_port`")
    arguments = parser.parse_args()
    slots = read_hostfile(arguments.hostfile)
    recipe = load_recipe(
        arguments.recipe, arguments.set, corpus=arguments.corpus, seed_model=arguments.seed_model, output_dir=arguments.output_dir
    )
    config = DeepSpeedConfig.load(arguments.ds_config)
    findings = Findings()
    master = address_of(next(iter(slots)))
    init_from = str(arguments.init_from) if arguments.init_from else None
    asked = {"master": master, "port": arguments.master_port, "recipe": recipe.as_dict(), "init_from": init_from}
    hosts = in_parallel(slots, lambda host: ask(host, asked))
    judge_hosts(hosts, slots, findings)
    if len(slots) > 1 and shutil.which("pdsh") is None:
        findings.notes.append("pdsh is not installed here: install it, or give deepspeed another --launcher")
    judge_recipe(recipe, config, hosts, slots, arguments.init_from, findings)
    print(table(hosts, slots))
    reached = {host: facts for host, facts in hosts.items() if "problem" not in facts}
    if len(reached) == len(slots):
        forwarded = environment(reached, slots)
        write_environment(forwarded)
        if not findings.failures:
            meet(list(slots), master, arguments.master_port, forwarded, str(recipe.output_dir), findings)
    for note in findings.notes:
        print(f"note    {note}")
    for failure in findings.failures:
        print(f"FAILED  {failure}")
    if findings.failures:
        sys.exit(1)
    without_ssh = "--no_ssh_check " if list(slots) == [HERE] else ""
    print(f"a run would start: deepspeed --hostfile {arguments.hostfile} {without_ssh}--master_addr {master} trainer/xpt.py ...")


def address_of(host: str) -> str:
    """The address that other hosts reach a host by. Raises UserError when its name has none."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, 22, socket.AF_INET, socket.SOCK_STREAM)}
    except OSError as error:
        raise UserError(f"{host}: no address ({error}); fix the name in the hostfile, or add it to /etc/hosts or the DNS") from None
    outside = sorted(address for address in found if not address.startswith("127."))
    return outside[0] if outside else "127.0.0.1"


def in_parallel(hosts: Any, work: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`work` for every host at once."""
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return dict(zip(hosts, pool.map(work, hosts), strict=True))


def on(host: str, command: str) -> list[str]:
    """What runs a shell's command there. This machine alone, `localhost`, needs no ssh server, nor does a run there."""
    return ["sh", "-c", command] if host == HERE else [*SSH, host, command]


def python_on(host: str, variables: dict[str, str], words: list[str]) -> list[str]:
    """What runs a module there, with this Python and in this folder."""
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
    return on(host, f"cd {shlex.quote(os.getcwd())} && {exports} {shlex.join([sys.executable, *words])}")


def read_facts(output: str) -> dict[str, Any] | None:
    line = next((line for line in output.splitlines() if line.startswith("facts ")), None)
    return json.loads(line.removeprefix("facts ")) if line else None


def ask(host: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `trainer.host` says there, besides `skew`, the seconds its clock is ahead; or a `problem` and its `remedy`."""
    try:
        first = subprocess.run(on(host, "true"), capture_output=True, text=True, timeout=30)
        if first.returncode:
            reason = (first.stderr.strip().splitlines() or [f"status {first.returncode}"])[-1]
            return {
                "problem": f"ssh does not reach it without a password ({reason})",
                "remedy": f"ssh-copy-id {host}, then try: ssh {host} true",
            }
        skew = clock_ahead(host)
        done = subprocess.run(python_on(host, {}, ["-m", "trainer.host", json.dumps(asked)]), capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        return {"problem": f"no answer within {error.timeout:g} s", "remedy": "look at its load and its network"}
    found = read_facts(done.stdout)
    if found is None:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {"problem": f"this project does not run there ({reason})",
                "remedy": f"this repository must be at {os.getcwd()}, its environment at {sys.prefix}, as here"}  # fmt: skip
    options = "" if host == HERE else subprocess.run(["ssh", "-G", host], capture_output=True, text=True).stdout
    return {**found, "skew": skew, "keepalive": "serveraliveinterval 0" not in options}


def clock_ahead(host: str) -> float:
    """Seconds that its clock is ahead of ours, less the way back. Raises TimeoutExpired when it does not say."""
    words = on(host, "date +%s.%N")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as there:
        assert there.stdout
        impatience = threading.Timer(30, there.kill)
        impatience.start()
        line = there.stdout.readline()
        now = time.time()  # at once when the line comes: the connection's end takes its time
        impatience.cancel()
    if not line:
        raise subprocess.TimeoutExpired(words, 30)
    return float(line) - now


def judge_hosts(hosts: dict[str, dict[str, Any]], slots: dict[str, int], findings: Findings) -> None:
    """Every host by itself, then against the first that answered."""
    good = {host: facts for host, facts in hosts.items() if "problem" not in facts}
    for host, facts in hosts.items():
        if "problem" in facts:
            findings.check(False, host, facts["problem"], facts["remedy"])
    reference = next(iter(good), "")
    versions = [key for key in installed() if key != "code"]
    for host, facts in good.items():
        for key in versions:
            same = good[reference][key]
            findings.check(facts[key] == same, host, f"{key} {facts[key]}, {same} on {reference}", "install the same versions everywhere")
        same = good[reference]["code"]
        findings.check(facts["code"] == same, host, f"code {facts['code']}, {same} on {reference}", "check out the same commit everywhere")
        findings.check(facts["seed_problem"] is None, host, str(facts["seed_problem"]), "copy the model there, or give it its path there")
        findings.check(facts["corpus_problem"] is None, host, f"corpus: {facts['corpus_problem']}", "copy the corpus there, or --corpus")
        same = good[reference]["corpus"]
        findings.check(facts["corpus"] == same, host, f"corpus {facts['corpus']}, {same} on {reference}", "copy the same corpus everywhere")
        unseen = bool(facts["gpu_devices"] and not facts["gpus"])
        findings.check(not unseen, host, "GPUs that torch does not see", "install torch's CUDA build, or a newer driver")
        kinds = sorted(set(facts["gpus"]))
        findings.check(
            unseen or bool(kinds) == bool(good[reference]["gpus"]), host, f"GPUs {kinds}, {reference} has {good[reference]['gpus']}",
            "use hosts with GPUs only or without only",
        )  # fmt: skip
        room = len(facts["gpus"]) or facts["cores"]
        findings.check(
            slots[host] <= room,
            host,
            f"{slots[host]} slots for {room} {'GPUs' if facts['gpus'] else 'cores'}",
            "lower slots in the hostfile",
        )
        findings.check(
            facts["port_free"] is not False, host, "the port for rank 0 is taken", "end what holds it, or choose another --master_port"
        )
        if facts["run_problem"] is not None:
            findings.failures.append(f"{host}: {facts['run_problem']}")
        findings.check(facts["writable"], host, "the run folder cannot be written", "choose another --output-dir")
        findings.check(abs(facts["skew"]) <= SKEW, host, f"its clock is {facts['skew']:+.0f} s off", "set it by NTP (chrony)")
        outside = len(hosts) == 1 or not facts["address"].startswith("127.")
        findings.check(
            outside, host, f"its name leads to {facts['address']}", "give the first host a name with its outer address in /etc/hosts"
        )
    if len(good) > 1 and not all(facts["keepalive"] for facts in good.values()):
        findings.notes.append("ssh notices a cut cable only after minutes: set `ServerAliveInterval 10` in ~/.ssh/config")
    if len({facts["interface"] for facts in good.values()}) > 1:
        findings.notes.append(
            "the hosts' interfaces have different names, so none is forwarded; each host's name must lead to its outer address"
        )


def judge_recipe(
    recipe: Recipe, config: DeepSpeedConfig, hosts: dict[str, dict[str, Any]], slots: dict[str, int], init_from: Path | None,
    findings: Findings,
) -> None:  # fmt: skip
    """Does the global batch divide, is this the expected number of ranks, do the GPUs have the precision, is there text enough, do the
    weights to begin from fit, and is there room for the state and for the checkpoints?"""
    world_size = sum(slots.values())
    for host, facts in hosts.items() if config.dtype == torch.bfloat16 else ():
        emulated = facts.get("without_bf16", [])
        findings.check(not emulated, host, f"bf16 only by emulation on {emulated}", "take --ds-config ds_configs/zero2_fp16.json")
    try:
        accumulation = config.accumulation(recipe.global_batch_size, world_size)
        findings.notes.append(
            f"batch {recipe.global_batch_size} = {world_size} ranks x {accumulation} micro-batches of {config.micro_batch}"
        )
        if all(facts.get("corpus") and not facts["seed_problem"] for facts in hosts.values()):
            corpus = Corpus.open(recipe.corpus)
            tokenizer = corpus_tokenizer(corpus)
            open_blocks(recipe, corpus, tokenizer)
            begun = begun_config(recipe)
            plan = Plan.of(recipe, tokenizer, begun)
            if init_from and begun is None:
                run_folder.refuse_other_model(recipe, corpus, plan.shapes, Checkpoint.open(init_from))
            judge_room(plan, config, accumulation, hosts, slots, findings)
    except UserError as error:
        findings.failures.append(str(error))
    expected = recipe.expect_world_size
    findings.check(
        expected in (None, world_size),
        "recipe",
        f"expect_world_size is {expected}, the hostfile has {world_size} slots",
        "change one of the two",
    )


def judge_room(
    plan: Plan, config: DeepSpeedConfig, accumulation: int, hosts: dict[str, dict[str, Any]], slots: dict[str, int], findings: Findings
) -> None:
    """Free memory against the model state of a host's ranks (a GPU's against one rank's, with its activations), free disk against the
    checkpoints."""
    world_size, stages = sum(slots.values()), range(len(plan.recipe.stages))
    device = torch.device("cuda" if any(facts["gpus"] for facts in hosts.values()) else "cpu")
    whole = config.sums_gradients(device, accumulation)
    state = max(plan.state_bytes(stage, world_size, config.dtype, whole, device) for stage in stages)
    of_gpu = state + plan.activation_bytes(config.micro_batch)
    for host, facts in hosts.items():
        gpus = facts["gpu_memory"][: slots[host]]  # the launcher takes the first
        room, wanted, what = (min(gpus), of_gpu, "a rank") if gpus else (facts["memory"], state * slots[host], "the model's state alone")
        findings.check(
            room > wanted, host, f"{_mebibytes(room)} of memory free, {what} takes {_mebibytes(wanted)}",
            "end what holds it, or use more hosts or a smaller model",
        )  # fmt: skip
        disk = plan.checkpoint_bytes() - facts["checkpoints"]
        findings.check(
            facts["disk"] > disk, host, f"{_mebibytes(facts['disk'])} of disk free, the checkpoints take {_mebibytes(disk)}",
            "make room, lower keep_last, or choose another --output-dir",
        )  # fmt: skip


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def environment(hosts: dict[str, dict[str, Any]], slots: dict[str, int]) -> dict[str, str]:
    """What the launcher has to forward."""
    gpus = any(facts["gpus"] for facts in hosts.values())
    threads = min(facts["cores"] // slots[host] for host, facts in hosts.items())
    variables = {"OMP_NUM_THREADS": str(max(1, threads))}
    if not gpus:
        variables["DS_ACCELERATOR"] = "cpu"
    if max(slots.values()) > 1:
        variables["OMP_PROC_BIND"] = "false"  # bound, all ranks of a host would crowd on its first cores
    names = {facts["interface"] for facts in hosts.values()}
    if len(names) == 1 and len(hosts) > 1:
        variables["GLOO_SOCKET_IFNAME"] = names.pop()
        if gpus and not any(facts["infiniband"] for facts in hosts.values()):  # which NCCL takes by itself
            variables["NCCL_SOCKET_IFNAME"] = f"={variables['GLOO_SOCKET_IFNAME']}"  # exactly this one; without = all that begin so
    return variables


def write_environment(variables: dict[str, str]) -> None:
    """Into .deepspeed_env; of those in it all but OURS stay, and what is exported here goes before: the launcher would forward the file's
    instead. It takes no comments or empty lines there."""
    variables = {key: os.environ.get(key, value) if key.endswith("_SOCKET_IFNAME") else value for key, value in variables.items()}
    before = ENVIRONMENT.read_text(encoding="utf-8").splitlines() if ENVIRONMENT.exists() else []
    kept = dict(line.split("=", 1) for line in before if "=" in line and not line.startswith("#"))
    for name in set(OURS) & set(kept) - set(variables):  # what an earlier call found need not hold any more
        print(f"{ENVIRONMENT}: {name}={kept.pop(name)} removed; it was not found this time")
    aside.write_text(ENVIRONMENT, "".join(f"{key}={value}\n" for key, value in {**kept, **variables}.items()))
    print(f"{ENVIRONMENT} written: {' '.join(f'{key}={value}' for key, value in variables.items())}")


def meet(hosts: list[str], master: str, port: int, forwarded: dict[str, str], run: str, findings: Findings) -> None:
    """One rank a host, as a run would have them: all-reduce, bandwidth, storage."""
    ranks = {host: str(rank) for rank, host in enumerate(hosts)}

    def join(host: str) -> dict[str, Any]:
        place = {"RANK": ranks[host], "LOCAL_RANK": "0", "WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": master, "MASTER_PORT": str(port)}
        try:
            done = subprocess.run(
                python_on(host, {**forwarded, **place}, ["-m", "trainer.meeting", run]), capture_output=True, text=True, timeout=150
            )
        except subprocess.TimeoutExpired:
            return {"problem": "no answer within 150 s"}
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return {"problem": (said or done.stderr.splitlines() or ["no word"])[-1]} if done.returncode else read_facts(done.stdout) or {}

    answers = in_parallel(hosts, join)
    lost = {host: answer["problem"] for host, answer in answers.items() if "problem" in answer}
    for host, problem in lost.items():
        findings.check(False, host, f"all-reduce between the hosts failed ({problem})",
                       f"open all TCP ports between the hosts, and see that {master} is the first host's address")  # fmt: skip
    if not lost:
        facts = answers[hosts[0]]
        if len(hosts) > 1:
            print(f"all-reduce between {len(hosts)} hosts: {facts['bytes_per_second'] * 8 / 1e9:.2f} Gbit/s")
        print(f"storage: {facts['storage']}")


def table(hosts: dict[str, dict[str, Any]], slots: dict[str, int]) -> str:
    """A line a host."""
    head = ("host", "slots", "ssh", "python", "torch", "deepspeed", "code", "accelerators", "memory", "disk", "corpus", "address", "clock")
    lines: list[tuple[str, ...]] = [head]
    for host, facts in hosts.items():
        if "problem" in facts:
            lines.append((host, str(slots[host]), "FAILED", *["?"] * (len(head) - 3)))
            continue
        gpus = facts["gpus"]
        lines.append((
            host, str(slots[host]), "none" if host == HERE else "ok", facts["python"], facts["torch"], facts["deepspeed"], facts["code"],
            f"{len(gpus)} {gpus[0]}" if gpus else f"{facts['cores']} cores", f"{facts['memory'] / 2**30:.1f}G",
            f"{facts['disk'] / 2**30:.0f}G", facts["corpus"] or "FAILED", f"{facts['interface']} {facts['address']}",
            f"{facts['skew']:+.2f}s",
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    run_command(main)
