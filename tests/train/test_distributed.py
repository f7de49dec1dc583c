import json
import os
import subprocess
import sys

from scenes import make_store

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from fastai.callback.core import Callback
from fastai.distributed import rank_distrib
from glacier_fastai.core.balance import PixelBalance
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.train.learner import glacier_learner

class Note(Callback):
    order = 200
    seen, kinds = [], set()
    def after_batch(self):
        self.kinds.add(type(self.learn.dl).__name__)
        if self.training:
            self.seen.append(hashlib.sha256(self.yb[0].numpy().tobytes()).hexdigest())

dls = GlacierDataLoaders.from_store(sys.argv[1], 0, 2, 16, folds=3, crops_per_tile=2, balance=PixelBalance())
learn = glacier_learner(dls, "resnet18", None, seed=0, cbs=[Note()])
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True):
    learn.fit(2, 1e-3)
weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in learn.model.parameters())).hexdigest()
found = {"seen": Note.seen, "kinds": sorted(Note.kinds), "mcc": learn.confusion_matrix.matrix["valid"].tolist()}
Path(sys.argv[2], f"{rank_distrib()}.json").write_text(json.dumps({**found, "weights": weights}))
"""


def test_fastai_leaves_the_loaders_of_two_processes_alone(tmp_path):
    store = make_store(tmp_path / "store")
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "train.py")]
    subprocess.run(
        [sys.executable, "-W", "ignore", *launch, str(store.path), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
        timeout=300,
    )
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["kinds"] == b["kinds"] == ["PixelBalancedDL"]
    assert len(a["seen"]) == len(b["seen"]) == 2 * (8 * 2 // 2 // 2)  # epochs x crops by ranks by batch
    assert len({*a["seen"], *b["seen"]}) == len(a["seen"]) + len(b["seen"])
    assert a["mcc"] == b["mcc"]  # each validates every tile
    assert a["weights"] == b["weights"]
