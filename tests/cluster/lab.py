"""A lab of hosts on one machine: each has its own network, process numbers, host name, mounts and sshd; a bridge joins them.

    python -m tests.cluster.lab --hosts 3 -- bash        # a shell on node1; the lab lasts as long as the command
    python -m tests.cluster.lab --hosts 2 --rate 1gbit -- deepspeed --hostfile hosts trainer/xpt.py ...

Needs root, Linux namespaces, `ip`, `tc`, ssh and sshd. Hosts are called node1, node2, ... and have the addresses 10.77.0.1, 10.77.0.2,
...; the bridge has a namespace of its own, so nothing of the machine's network is touched, and nothing is left when the processes that
hold the namespaces end. The hosts see the machine's files; `Host.disk` gives a folder a file system of the host's own.
"""

import argparse
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TOOLS = ("unshare", "nsenter", "ip", "tc", "ssh", "ssh-keygen", "sshd", "pdsh")
NETWORK = "10.77.0"
SSHD = """
Port 22
PidFile none
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
PrintMotd no
SetEnv HOME={home}
"""
# A link that is cut ends no connection by itself: ssh has to ask.
SSH = """
Host *
  IdentityFile {folder}/user_key
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel ERROR
"""
# First process of a host. It waits for its end of the cable, then lives until the lab ends; bash buries orphans.
INIT = """
read go
hostname {name}
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
ip link set lo up
ip link set eth0 up
ip address add {address}/24 dev eth0
{sshd} -D -e -f {home}/sshd_config 2>>{home}/sshd.log &
while true; do wait; sleep 1; done
"""


def missing() -> str:
    """What this machine lacks for a lab; empty when it has everything."""
    if os.geteuid() != 0:
        return "root"
    lacking = [tool for tool in TOOLS if not _which(tool)]
    if lacking:
        return ", ".join(lacking)
    words = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "ip", "link", "add", "v0", "type", "veth"]
    tried = subprocess.run(words, capture_output=True, text=True)
    return f"namespaces ({tried.stderr.strip()})" if tried.returncode else ""


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Host:
    """One host: a process that holds its namespaces, and what can be done to it."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.lab, self.name, self.address, self.port = lab, f"node{number}", f"{NETWORK}.{number}", f"port{number}"
        self.home = lab.folder / self.name
        self.home.mkdir()
        (self.home / "sshd_config").write_text(SSHD.format(folder=lab.folder, home=self.home))
        init = INIT.format(name=self.name, address=self.address, folder=lab.folder, home=self.home, sshd=_which("sshd"))
        flags = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]
        self._holder, self._init = lab.hold(flags, init)
        lab.switch(f"ip link add {self.port} type veth peer name eth0 netns {self._init}")
        lab.switch(f"ip link set {self.port} master bridge up")
        assert self._holder.stdin
        self._holder.stdin.write(b"go\n")
        self._holder.stdin.close()

    def start(self, words: Sequence[str], cwd: Path = ROOT, **options: object) -> subprocess.Popen[str]:
        """Start a command on this host."""
        enter = ["nsenter", "--target", str(self._init), "--net", "--mount", "--uts", "--pid"]
        line = f"cd {shlex.quote(str(cwd))} && exec {shlex.join(words)}"
        return subprocess.Popen([*enter, "bash", "-c", line], env=self.environment, text=True, **options)  # type: ignore[call-overload]

    def run(self, words: Sequence[str], timeout: float = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        process = self.start(words, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def environment(self) -> dict[str, str]:
        """What a shell on this host has. Little of it reaches the other hosts."""
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "TERM": "dumb", **allowed}

    def processes(self, pattern: str) -> list[int]:
        """Process numbers, as the machine counts them, of what runs on this host with a command line that begins like `pattern`."""
        space = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and os.readlink(folder / "ns" / "pid") == space:
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if re.match(pattern, words):  # a zombie's is empty
                        found.append(int(folder.name))
            except OSError:
                continue
        return sorted(found)

    def kill(self, pattern: str, how: signal.Signals = signal.SIGKILL) -> None:
        """A signal to `processes(pattern)`."""
        for number in self.processes(pattern):
            os.kill(number, how)

    def cut(self) -> None:
        """Pull the cable."""
        self.lab.switch(f"ip link set {self.port} down")

    def join(self) -> None:
        """Put the cable back."""
        self.lab.switch(f"ip link set {self.port} up")

    def shape(self, rate: str) -> None:
        """Let the cable carry no more than `rate` (1gbit, 100mbit) either way."""
        limit = f"root tbf rate {rate} burst 256kb latency 100ms"
        self.lab.switch(f"tc qdisc replace dev {self.port} {limit}")
        subprocess.run(
            ["nsenter", "--target", str(self._init), "--net", "tc", "qdisc", "replace", "dev", "eth0", *limit.split()], check=True
        )

    def sent(self) -> int:
        """Bytes that left this host."""
        lines = Path(f"/proc/{self._init}/net/dev").read_text().splitlines()
        return int(next(line for line in lines if "eth0:" in line).split(":")[1].split()[8])

    def disk(self, folder: Path, size: str = "1G") -> None:
        """Mount a file system of this host's own, empty and of this size, on `folder`."""
        words = ["nsenter", "--target", str(self._init), "--mount", "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(words, check=True)


class Lab:
    """Some hosts on a bridge. A context: at its end every process of every host is gone."""

    def __init__(self, hosts: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lab-"))
        self._holders: list[subprocess.Popen[bytes]] = []
        for name, comment in (("host_key", "host"), ("user_key", "user")):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self.folder / name)], check=True)
        names = [(f"{NETWORK}.{number}", f"node{number}") for number in range(1, hosts + 1)]
        key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text("".join(f"{address},{name} {key}" for address, name in names))
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in names))
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        _, self._switch = self.hold(["--net", "--fork"], "ip link add bridge type bridge; ip link set bridge up; sleep infinity")
        _until(lambda: not subprocess.run(self._in_switch("ip link show bridge"), capture_output=True).returncode)
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        for host in self.hosts:
            _until(lambda host=host: not self.hosts[0].run(["ssh", host.name, "true"]).returncode)  # type: ignore[misc]

    def hold(self, flags: list[str], script: str) -> tuple[subprocess.Popen[bytes], int]:
        """A process that holds new namespaces, and the number of the first process in them."""
        words = ["unshare", *flags, "--kill-child=SIGKILL", "bash", "-c", script]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, preexec_fn=_end_with_parent)
        self._holders.append(holder)
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        _until(lambda: bool(children.read_text().split()))
        return holder, int(children.read_text().split()[0])

    def _in_switch(self, line: str) -> list[str]:
        return ["nsenter", "--target", str(self._switch), "--net", *line.split()]

    def switch(self, line: str) -> None:
        """Run a command where the bridge is."""
        subprocess.run(self._in_switch(line), check=True)

    def hostfile(self, slots: int = 1, hosts: int | None = None) -> Path:
        """A hostfile of the first `hosts` hosts (default: all)."""
        chosen = self.hosts[:hosts]
        path = self.folder / f"hostfile-{len(chosen)}x{slots}"
        path.write_text("".join(f"{host.name} slots={slots}\n" for host in chosen))
        return path

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()
        shutil.rmtree(self.folder)


def _end_with_parent() -> None:
    """However this program ends, the kernel ends the hosts with it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _until(true: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError("the lab does not come up")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a command on the first of some hosts.")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="in the hostfile `hosts` in the first host's home")
    parser.add_argument("--rate", help="what each host's cable carries, e.g. 1gbit")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    lacking = missing()
    if lacking:
        sys.exit(f"error: a lab needs {lacking}")
    with Lab(arguments.hosts) as lab:
        lab.hostfile(arguments.slots).rename(lab.hosts[0].home / "hosts")
        for host in lab.hosts if arguments.rate else ():
            host.shape(arguments.rate)
        sys.exit(lab.hosts[0].start(arguments.command).wait())


if __name__ == "__main__":
    main()
