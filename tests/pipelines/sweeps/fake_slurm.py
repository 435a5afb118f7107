"""sbatch, srun and sacct as submitit calls them, without Slurm: the tasks of an array run here, as many at
once as it allows.

python fake_slurm.py sbatch SCRIPT
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STATES = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    print("Submitted batch job 77", flush=True)
    if os.fork() == 0:
        os.setsid()
        for descriptor in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        text = Path(script).read_text()
        first, last, most = re.search(r"--array=(\d+)-(\d+)%(\d+)", text).groups()  # type: ignore[union-attr]
        with ThreadPoolExecutor(int(most)) as pool:
            list(pool.map(lambda task: _run(script, task), range(int(first), int(last) + 1)))
        os._exit(0)


def _run(script: str, task: int) -> None:
    numbers = {"SLURM_JOB_ID": str(77 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}
    place = {"SLURM_CPUS_PER_TASK": "3", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    place |= {"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1"}
    code = subprocess.run(["bash", script], env={**os.environ, **numbers, **place}).returncode
    (STATES / str(task)).write_text("COMPLETED" if code == 0 else "NODE_FAIL")


def srun(*arguments: str) -> None:
    command = list(arguments)
    while command[0].startswith("-"):
        command = command[1 if "=" in command[0] or command[0] == "--unbuffered" else 2 :]
    os.execvp(command[0], command)


def sacct() -> None:
    print("JobID|State|NodeList")
    for task in range(100):
        state = STATES / str(task)
        print(f"77_{task}|{state.read_text() if state.exists() else 'RUNNING'}|node1")


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    {"sbatch": sbatch, "srun": srun, "sacct": lambda *_: sacct()}[name](*rest)
