import os
import signal
import time

import pytest
from fastai.callback.core import Callback
from learners import small_learner

from glacier_fastai.train.stop import StopCallback


class Send(Callback):
    """Sends this process signals after a batch of training or of validation, or at the end of an epoch."""

    order = 0

    def __init__(self, at, *signals, epoch=1, batch=1):
        self.at, self.signals, self.when = at, signals, (epoch, batch)

    def _send(self):
        for number in self.signals:
            os.kill(os.getpid(), number)

    def after_batch(self):
        if self.at == ("train" if self.training else "valid") and (self.epoch, self.iter) == self.when:
            self._send()

    def after_epoch(self):
        if self.at == "epoch" and self.epoch == self.when[0]:
            self._send()


class Count(Callback):
    order = 50

    def before_fit(self):
        self.batches = 0

    def after_batch(self):
        self.batches += self.training


@pytest.fixture
def learn(tmp_path):
    return small_learner(tmp_path / "s")  # 4 batches of training, 2 of validation


@pytest.mark.parametrize(
    ("at", "number", "batches"),
    [("train", signal.SIGTERM, 6), ("train", signal.SIGINT, 6), ("valid", signal.SIGTERM, 8), ("epoch", 15, 8)],
)
def test_a_signal_stops_after_the_batch(learn, caplog, at, number, batches):
    caplog.set_level("INFO")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop, count = StopCallback(), Count()
    learn.fit(5, 1e-3, cbs=[stop, count, Send(at, number)])
    assert (stop.reason, count.batches) == (signal.Signals(number).name, batches)
    assert f"{stop.reason}: stopping after this batch" in caplog.text
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_stops_at_once(learn, caplog):
    caplog.set_level("INFO")
    stop, count = StopCallback(), Count()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(5, 1e-3, cbs=[stop, count, Send("train", signal.SIGINT, signal.SIGINT)])
    stop.release()
    assert count.batches == 5
    assert "a second Ctrl-C stops at once, with what was saved last" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_epochs_end_comes_too_late(learn):
    stop = StopCallback()
    learn.fit(2, 1e-3, cbs=[stop, Send("epoch", signal.SIGTERM)])
    assert (stop.reason, len(learn.recorder.values)) == ("", 2)


def test_the_time_counts_from_where_it_is_told(learn):
    stop, count = StopCallback(1.0, time.monotonic() - 61), Count()
    learn.fit(2, 1e-3, cbs=[stop, count])
    assert (stop.reason, count.batches) == ("train.max_minutes=1", 1)
    stop = StopCallback(1.0)
    learn.fit(2, 1e-3, cbs=[stop, count])
    assert (stop.reason, count.batches) == ("", 8)


def test_a_stop_is_forgotten_by_the_next_fit(learn):
    stop, send = StopCallback(), Send("train", signal.SIGTERM)
    learn.fit(3, 1e-3, cbs=[stop, send])
    learn.fit(1, 1e-3, cbs=[stop])
    assert (stop.reason, stop.received) == ("", 0)
