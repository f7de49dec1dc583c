"""Starting a training command in several processes, with torchrun."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import get_args_parser
from torch.distributed.run import run as torchrun

from ..errors import RunStopped, TrainingError
from ..model.processes import MEETING

__all__ = ["launch"]


def launch(
    words: Sequence[str],  # training command and its options
    processes: int,  # on this machine
    machines: int = 1,  # that run the same command
    rendezvous: str = "",  # HOST:PORT where they meet
) -> None:
    """Run a training command in several processes, and end when all have ended.

    Raises:
        TrainingError: More processes than GPUs, or without a GPU than cores; no meeting point; or a process failed.
        RunStopped: The run was stopped in time.
    """
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if processes > (gpus or cores):
        raise TrainingError(
            f"{processes} processes: this machine has {f'{gpus} GPU' if gpus else f'no GPU and {cores} cores'}; "
            f"use {gpus or cores} at most"
        )
    if machines > 1 and not rendezvous:
        raise TrainingError(f"{machines} machines: name a rendezvous HOST:PORT, the same on each")
    if rendezvous and not re.fullmatch(r"(\[[\da-fA-F:.]+\]|[\w.-]+):\d{1,5}", rendezvous, re.ASCII):
        raise TrainingError(f"rendezvous {rendezvous!r}: write HOST:PORT")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ["PYTHONSAFEPATH"] = "1"  # or `python -m` would import what lies in the current folder
    with ExitStack() as stack:
        if rendezvous:
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", rendezvous]
        else:
            meeting = _on_this_machine(Path(stack.enter_context(TemporaryDirectory(prefix="glacier_fastai-"))))
        _run(words, processes, machines, meeting)


def _on_this_machine(folder: Path) -> list[str]:
    """Return torchrun's options where nobody else takes part: processes meet in files, and listen on 127.0.0.1 alone.

    torchrun's own store listens on all addresses, without a password, and takes pickles.
    """
    os.environ |= {MEETING: str(folder / "processes"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    for kind in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{kind}_SOCKET_IFNAME", "lo")
    where = ["--rdzv-endpoint", str(folder / "torchrun"), "--local-addr", "127.0.0.1"]
    return ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", *where]


def _run(words: Sequence[str], processes: int, machines: int, meeting: list[str]) -> None:
    count = ["--nnodes", str(machines), "--nproc-per-node", str(processes)]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the line below says the same
    try:
        torchrun(get_args_parser().parse_args([*meeting, *count, "-m", "glacier_fastai", *words]))
    except SignalException as err:
        raise RunStopped(f"stopped by {err.sigval.name}; start it again with resume to go on") from err
    except RendezvousError as err:
        raise TrainingError(
            f"the {machines} machines do not meet; start the same command on each, with a rendezvous that all reach"
        ) from err
    except ChildFailedError as err:
        rank, failure = err.get_first_failure()
        if failure.exitcode == RunStopped.exit_code:
            sys.exit(failure.exitcode)  # the process has said how to go on
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"failed ({failure.exitcode})"
        raise TrainingError(
            f"process {rank} of {machines * processes} {how}, and the others were stopped; its message is above; start "
            "it again with resume to go on"
        ) from err
