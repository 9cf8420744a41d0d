"""A real SLURM cluster on this machine, to try out sweeps and for tests: `cluster.py up DIR`, `cluster.py down DIR`.

A controller and two nodes, n1 and n2, run as this user; neither systemd nor root is needed. All files are in DIR: /etc,
/run and /var are neither read nor written. `up` writes DIR/env for the shell to source. DIR is created, or is empty, or
has an earlier cluster, which is deleted; `up` and `down` refuse any other folder. All ports listen on 127.0.0.1 alone.
"""

import argparse
import getpass
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

REQUIRED_PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd"}
REQUIRED_PROGRAMS |= dict.fromkeys(("sbatch", "squeue"), "slurm-client")
ACCOUNTING_PROGRAMS = dict.fromkeys(("mariadbd", "mariadb-install-db"), "mariadb-server")
ACCOUNTING_PROGRAMS |= {"slurmdbd": "slurmdbd slurm-wlm-mysql-plugin"}
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")  # in the order of their start
MARKER = ".attnzoo-cluster"  # in the folder of a cluster, and in no other
SOCKET_LENGTH = 90
START_SECONDS = 60
STOP_SECONDS = 10
RUN_SECONDS = 30

# cred_expire also delays requeued jobs. Preempted jobs get their --signal only with preempt_send_user_signal and
# a grace time.
CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=30,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
MaxArraySize=1001
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
CompleteWait=0
MinJobAge={min_job_age}
InactiveLimit=0
MessageTimeout=5
BatchStartTimeout=10
TreeWidth=2
{nodes}
PartitionName=debug       Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=ALL Default=NO  MaxTime=60 DefaultTime=10 PriorityTier=1 GraceTime=8
PartitionName=killable    Nodes=ALL Default=NO  MaxTime=60 DefaultTime=10 PriorityTier=1 GraceTime=0
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket"""
DATABASE_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_accounting
"""
DATABASE_INIT_SQL = """\
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
CREATE DATABASE slurm_accounting;
GRANT ALL ON slurm_accounting.* TO 'slurm'@'127.0.0.1';
"""
# Seconds until slurmctld drops finished jobs; with accounting, slurmdbd keeps them.
MIN_JOB_AGE, MIN_JOB_AGE_WITH_ACCOUNTING = 86400, 2
NODE = "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 State=UNKNOWN"


class ClusterError(RuntimeError):
    """The cluster did not start. The message is one line."""


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("folder", type=_path, help="cluster directory; a short path, since it holds Unix sockets")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs per node")
    parser.add_argument("--accounting", action="store_true", help="enable accounting (sacct)")
    args = parser.parse_args()
    try:
        _check_folder(args.folder)  # before links are followed
        folder = args.folder.resolve()
        if args.action == "down":
            down(folder)
            print(f"the cluster in {folder} is down")
            return 0
        up(folder, args.cpus, args.accounting)
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"two nodes are up; in this shell: . {folder / 'env'}")
    return 0


def _path(text: str) -> Path:
    if not text:  # often a variable that is not set; Path("") is the current folder
        raise argparse.ArgumentTypeError("an empty path: name a new or empty folder")
    return Path(text)


def up(folder: Path, cpus: int = 4, accounting: bool = False) -> None:
    """Start the cluster and wait until both nodes are idle.

    Raises ClusterError, also for a folder that is neither empty nor one of an earlier cluster of this user.
    """
    _check_folder(folder)
    _check_programs(REQUIRED_PROGRAMS | ACCOUNTING_PROGRAMS if accounting else REQUIRED_PROGRAMS)
    if _daemons(folder):
        stop = f"`cluster.py down {folder}` stops it"
        raise ClusterError(f"a cluster is already running in {folder}; in this shell: . {folder / 'env'}; {stop}")
    if len(str(folder)) > SOCKET_LENGTH:
        raise ClusterError(f"{folder}: the path is too long for a socket; name a folder in /tmp")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True)
    (folder / MARKER).touch()
    for name in ("state", "log", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    _configure(folder, cpus, accounting)
    try:
        _start(folder)
    except BaseException:
        down(folder)
        raise


def down(folder: Path) -> None:
    """Cancel all jobs, then stop the daemons, the last one first. Raises ClusterError for any other folder."""
    _check_folder(folder)
    daemons = _daemons(folder)
    if "slurmctld" in daemons.values() and (folder / "slurm.conf").is_file():  # SLURM's commands wait for it
        _run(folder, "scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
        _run(folder, "scancel", "--user", getpass.getuser())
        _wait(STOP_SECONDS, lambda: not _run(folder, "squeue", "--noheader"))
    for pid in reversed(daemons):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if not _wait(STOP_SECONDS, lambda pid=pid: pid not in _daemons(folder)):
                os.kill(pid, signal.SIGKILL)


def start_node(folder: Path, name: str) -> int:
    """Start the daemon of a node; returns its process id."""
    return _start_daemon(folder, f"slurmd-{name}", "slurmd", "-D", "-N", name, "-f", str(folder / "slurm.conf"))


def _check_folder(folder: Path) -> None:
    """Raise ClusterError unless the folder is missing, empty, or of a cluster of this user, and not a link."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        what = {stat.S_IFLNK: "a link", stat.S_IFREG: "a file"}.get(stat.S_IFMT(status.st_mode), "a pipe or a device")
        raise ClusterError(f"{folder}: is {what}; name a new or empty folder")
    if status.st_uid != os.geteuid():
        raise ClusterError(f"{folder}: belongs to another user; name a new or empty folder")
    names = os.listdir(folder)
    marker = (folder / MARKER).lstat() if MARKER in names else None  # a file of ours, not a link to one
    if names and not (marker and stat.S_ISREG(marker.st_mode) and marker.st_uid == os.geteuid()):
        raise ClusterError(f"{folder}: holds other files, which would be deleted; name a new or empty folder")


def _check_programs(required: Mapping[str, str]) -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin:/usr/local/sbin"  # daemons are there; an ordinary user's PATH lacks it
    missing = [program for program in required if shutil.which(program) is None]
    if missing:
        packages = " ".join(dict.fromkeys(required[program] for program in missing))
        raise ClusterError(f"{', '.join(missing)} missing: install SLURM (Debian: apt-get install {packages})")


def _configure(folder: Path, cpus: int, accounting: bool) -> None:
    port, dbd_port, database_port, *ports = _free_ports(5)
    fields = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder}
    lines = [NODE.format(number=i, port=p, cpus=cpus, **fields) for i, p in enumerate(ports, start=1)]
    text = CONF.format(
        port=port,
        nodes="\n".join(lines),
        accounting=ACCOUNTING.format(port=dbd_port, **fields) if accounting else NO_ACCOUNTING,
        min_job_age=MIN_JOB_AGE_WITH_ACCOUNTING if accounting else MIN_JOB_AGE,
        **fields,
    )
    (folder / "slurm.conf").write_text(text)
    if accounting:
        (folder / "slurmdbd.conf").write_text(
            DATABASE_CONF.format(port=dbd_port, database_port=database_port, **fields)
        )
        (folder / "slurmdbd.conf").chmod(0o600)
        (folder / "database-port").write_text(str(database_port))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # slurmd cannot detect it without cgroups
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "env").write_text(f"export SLURM_CONF='{folder}/slurm.conf'\n")


def _start(folder: Path) -> None:
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in {**files, "log-file": "log/munge.log"}.items()]
    _start_daemon(folder, "munged", "munged", "--foreground", "--force", *options)
    if not _wait(START_SECONDS, (folder / "munge.socket").exists):
        raise ClusterError(f"munged did not start; see {folder}/log")
    if (folder / "slurmdbd.conf").exists():
        _start_accounting(folder)
    _start_daemon(folder, "slurmctld", "slurmctld", "-D", "-i", "-f", str(folder / "slurm.conf"))
    for name in ("n1", "n2"):
        start_node(folder, name)
    if not _wait(START_SECONDS, lambda: _idle_nodes(folder) == 2):
        raise ClusterError(f"the nodes did not become idle within {START_SECONDS} s; see {folder}/log")


def _start_accounting(folder: Path) -> None:
    data, port, user = folder / "database", (folder / "database-port").read_text(), getpass.getuser()
    install_options = ["--skip-test-db", "--auth-root-authentication-method=socket"]
    _run(folder, "mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={data}", *install_options)
    (folder / "database.sql").write_text(DATABASE_INIT_SQL)
    files = {"datadir": data, "socket": folder / "database.socket", "pid-file": folder / "database.pid"}
    options = [f"--{option}={path}" for option, path in {**files, "init-file": folder / "database.sql"}.items()]
    server_options = [f"--user={user}", "--bind-address=127.0.0.1", f"--port={port}"]
    _start_daemon(folder, "mariadbd", "mariadbd", "--no-defaults", *server_options, *options)
    if not _wait(START_SECONDS, lambda: _listens(int(port))):
        raise ClusterError(f"the database did not start; see {folder}/log")
    _start_daemon(folder, "slurmdbd", "slurmdbd", "-D")
    add = ("sacctmgr", "--noheader", "--immediate", "add", "cluster", "local")
    if not _wait(START_SECONDS, lambda: "Adding Cluster" in _run(folder, *add)):
        raise ClusterError(f"slurmdbd did not start; see {folder}/log")


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _idle_nodes(folder: Path) -> int:
    return _run(folder, "sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T").split().count("idle")


def _start_daemon(folder: Path, name: str, *command: str) -> int:
    """Start a daemon in a new session, so that it outlives this program; returns its process id."""
    with (folder / "log" / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_environment(folder), start_new_session=True
        )
    return process.pid


def _run(folder: Path, *command: str) -> str:
    """The output of a program; "" if it takes longer than RUN_SECONDS, as of a controller that does not answer."""
    try:
        done = subprocess.run(command, env=_environment(folder), text=True, capture_output=True, timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _environment(folder: Path) -> dict[str, str]:
    """The environment without the variables of a surrounding job."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return kept | {"SLURM_CONF": str(folder / "slurm.conf")}


def _daemons(folder: Path) -> dict[int, str]:
    """The running daemons of the cluster in `folder`, pid -> program, in the order of their start.

    By the environment of every process: a file that lists them could be lost.
    """
    mark, found = f"SLURM_CONF={folder}/slurm.conf".encode(), dict[int, str]()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            program, _, rest = (path / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            is_ours = program in DAEMONS and mark in (path / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, PermissionError, ProcessLookupError):  # it has ended, or is another user's
            continue
        if is_ours and rest.split()[0] != "Z":
            found[int(path.name)] = program
    return dict(sorted(found.items(), key=lambda item: (DAEMONS.index(item[1]), item[0])))


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    for server in sockets:
        server.bind(("127.0.0.1", 0))
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _wait(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; returns whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    sys.exit(main())
