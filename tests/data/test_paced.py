import time

import pytest
import requests
from server import dripping
from web import Web

from glacier_fastai.data.paced import paced_session


def test_time_in_which_nobody_reads_does_not_count():
    with (
        Web({"a": bytes(2**20)}) as web,
        paced_session(0.3) as session,
        session.get(f"{web.url}/a", stream=True, timeout=5) as answer,
    ):
        time.sleep(0.5)
        assert len(answer.content) == 2**20


def test_each_answer_has_a_clock_of_its_own():
    with Web({"a": b"1"}, lambda number, path, start: time.sleep(0.2)) as web, paced_session(0.4, slow=0) as session:
        for _ in range(4):
            assert session.get(f"{web.url}/a", timeout=5).content == b"1"


@pytest.mark.parametrize(
    ("slow", "said"), [(1000, "less than 1,000 bytes a second"), (0, "an answer for more than 0.3 s")]
)
def test_a_server_that_is_too_slow_is_hung_up_on(slow, said):
    for begins in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"):
        with (
            dripping(begins) as url,
            paced_session(0.3, slow=slow) as session,
            pytest.raises(requests.RequestException, match=f"sends {said}"),
        ):
            session.get(url, timeout=5)
