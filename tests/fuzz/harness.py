"""One command in a process of its own, and what became of it."""

import os
import re
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

SECONDS, MEMORY, LINE = 20, 3 * 2**30, 400
GOOD = ("accepted", "refused")


class Outcome(NamedTuple):
    """What became of a command."""

    kind: str  # one of GOOD, or traceback, noisy, left, wrong, slow, killed, network
    said: str  # its last line, or where it broke
    out: str = ""  # its standard output


def tree(folder: Path) -> set[str]:
    """Return the paths of all that lies in a folder."""
    return {str(Path(home, name)) for home, folders, files in os.walk(folder) for name in (*folders, *files)}


def run(words: list[str], folder: Path, ports: tuple[int, ...] = ()) -> Outcome:
    """Run a command line in a folder; it may ask this machine's `ports`, and nobody else."""
    before, out, err = tree(folder), folder.with_suffix(".out"), folder.with_suffix(".err")
    pid = os.fork()
    if not pid:
        _child(words, folder, out, err, ports)
    _, status = os.waitpid(pid, 0)
    printed, text = (p.read_bytes().decode("utf-8", "replace") for p in (out, err))
    out.unlink()
    err.unlink()
    if "NETWORK " in text:
        return Outcome("network", text[text.index("NETWORK ") :].splitlines()[0])
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Outcome("slow" if name in ("SIGALRM", "SIGPROF") else "killed", name)
    code, lines = os.WEXITSTATUS(status), [line for line in text.splitlines() if line.strip()]
    if "Traceback" in text:
        return Outcome("traceback", _place(text))
    if code == 0:
        return Outcome("accepted", "", printed)
    errors = [line for line in lines if not re.match(r"note: |[a-z]+ {2,}| {8}", line)]
    last = errors[-1] if errors else ""
    if code == 2 and re.search(r": \d+ of \d+ scenes failed, see above", last):
        return Outcome("accepted", last)  # the others were mapped
    if code != 2 or len(errors) != 1 or len(last) > LINE + len("glacier-fastai: ") or not last.isprintable():
        return Outcome("noisy", f"exit {code}, {len(errors)} lines: {' / '.join(errors)[:200]!r}")
    if new := tree(folder) - before:
        return Outcome("left", f"{sorted(new)[:3]}")
    return Outcome("refused", last)


def _child(words: list[str], folder: Path, out: Path, err: Path, ports: tuple[int, ...]) -> None:
    code = 70
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its own: others may be at work, too
        signal.alarm(10 * SECONDS)
        allowed = [("127.0.0.1", port) for port in ports]
        sys.addaudithook(lambda event, args: _offline(event, args, allowed))
        from glacier_fastai.cli import main

        sys.argv = ["glacier-fastai", *words]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _offline(event: str, args: tuple, allowed: list[tuple[str, int]]) -> None:
    """End the process where it asks the network."""
    if event == "socket.connect" and args[-1] in allowed or event == "socket.getaddrinfo" and args[:2] in allowed:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"NETWORK {event} {args[-1] if event != 'socket.getaddrinfo' else args[:2]}\n".encode())
        os.abort()


def _place(text: str) -> str:
    """Return the innermost line of ours, and the exception."""
    ours = re.findall(r'File "[^"]*/(glacier_fastai/[^"]+)", line (\d+)', text)
    last = next(
        (line for line in reversed(text.splitlines()) if re.match(r"[\w.]+(Error|Exception|Warning)\b", line)), ""
    )
    return f"{':'.join(ours[-1]) if ours else '?'} {last[:120]}"
