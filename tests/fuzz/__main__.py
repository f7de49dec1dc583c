"""``python -m tests.fuzz --n 10000 --seed S``: a table of kinds and outcomes, and what went wrong, by place."""

import argparse
import collections
import os
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

from .trial import GOOD, KINDS, Trials  # noqa: E402  threads are counted at import


def main() -> int:
    """Run it; return 1 if anything was neither accepted nor refused well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="inputs, shared evenly among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="these alone")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    table: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
    wrong: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as work:
        trials = Trials(Path(work))
        for n in range(options.n):
            kind = kinds[n % len(kinds)]
            outcome, what = trials(kind, f"{options.seed} {kind} {n}")
            table[kind][outcome.kind] += 1
            if outcome.kind not in GOOD:
                wrong[kind, outcome.kind, outcome.said].append(f"{n}: {what}")
                if len(wrong[kind, outcome.kind, outcome.said]) == 1:
                    print(f"{kind}: {outcome.kind}: {outcome.said}\n    {n}: {what}", flush=True)
    names = list(dict.fromkeys([*GOOD, *(o for counts in table.values() for o in counts)]))
    print(f"\n{'':18}" + "".join(f"{name:>11}" for name in names))
    for kind, counts in table.items():
        print(f"{kind:18}" + "".join(f"{counts[name]:11}" for name in names))
    total = sum(table.values(), collections.Counter())
    print(f"{'all':18}" + "".join(f"{total[name]:11}" for name in names) + f"\n\nseed {options.seed}")
    for (kind, outcome, said), cases in sorted(wrong.items(), key=lambda each: -len(each[1])):
        print(f"{len(cases):5} {kind}: {outcome}: {said}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
