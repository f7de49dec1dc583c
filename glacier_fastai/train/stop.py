"""Stopping a run in time: by a limit in minutes, by SIGTERM, as schedulers send it, or by Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
import time

from fastai.callback.core import Callback, CancelFitException

from ..model.processes import all_reduce_max, world_size

__all__ = ["StopCallback"]

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: its terminal was closed
TIME_UP = 127  # no signal has this number


class StopCallback(Callback):
    """Ends training after the batch in which the time is up or a signal comes; a second Ctrl-C ends it at once.

    Processes of a launch stop together, after a batch of training or at the end of an epoch.
    """

    name, order = "stop", 101  # after all have seen the batch, `CheckpointCallback` included

    def __init__(
        self,
        minutes: float | None = None,  # limit, minutes
        started: float | None = None,  # `time.monotonic()` from which they count, default the start of fit
    ):
        self.minutes, self.started = minutes, started
        self.received, self.reason = 0, ""
        self.handlers: dict = {}

    def before_fit(self):
        """Start the clock and listen."""
        self.started = time.monotonic() if self.started is None else self.started
        self.received, self.reason, self.trained = 0, "", False
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as nohup and shells set it
            self.handlers = {number: signal.signal(number, self._receive) for number in heard}

    def _receive(self, number: int, frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        again = "; a second Ctrl-C stops at once, with what was saved last" if number == signal.SIGINT else ""
        log.info("%s: stopping after this batch%s", signal.Signals(number).name, again)

    def _check(self) -> None:
        # time counts once a batch was trained, or a run resumed again and again would never come out of a validation
        limit = None if self.minutes is None or self.started is None else self.started + 60 * self.minutes
        late = self.trained and limit is not None and time.monotonic() > limit
        code = all_reduce_max(self.received or (TIME_UP if late else 0))
        if code:
            self.reason = f"train.max_minutes={self.minutes:g}" if code == TIME_UP else signal.Signals(code).name
            raise CancelFitException

    def after_batch(self):
        """Stop in time."""
        self.trained = self.trained or self.training
        if self.training or world_size() == 1:  # processes may validate different numbers of batches
            self._check()

    def after_epoch(self):
        """Stop in time, unless all is done."""
        if self.epoch + 1 < self.n_epoch:
            self._check()

    def after_fit(self):
        """Listen no longer."""
        self.release()

    def release(self) -> None:
        """Give the signals back; also needed where a fit failed."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())
