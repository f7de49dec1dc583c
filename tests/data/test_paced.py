import time

import pytest
import requests
from server import dripping
from web import Answer, Web

from glacier_fastai.data.paced import paced_session


def test_time_in_which_nobody_reads_does_not_count():
    with (
        Web({"a": bytes(2**20)}) as web,
        paced_session(0.3) as session,
        session.get(f"{web.url}/a", stream=True, timeout=5) as answer,
    ):
        time.sleep(0.5)
        assert len(answer.content) == 2**20


def test_the_clock_goes_on_from_answer_to_answer():
    def slowly(number, path, start):
        time.sleep(0.2)

    with Web({"a": bytes(1000)}, slowly) as web:
        with paced_session(0.5) as session:
            for _ in range(5):
                assert len(session.get(f"{web.url}/a", timeout=5).content) == 1000
        with paced_session(0.5, slow=0) as session, pytest.raises(requests.RequestException, match="over more than"):
            for _ in range(5):
                session.get(f"{web.url}/a", timeout=5)


def test_the_body_of_a_redirect_is_not_read():
    moved = Answer(status=302, headers={"Location": "/b", "Content-Length": 2**40}, stall=2**16, body=bytes(2**16))
    plan = {"/a": moved}
    with Web({"b": b"here"}, lambda number, path, start: plan.get(path)) as web, paced_session(0.5) as session:
        assert session.get(f"{web.url}/a", timeout=5).content == b"here"


def test_hints_before_an_answer_are_passed_over_but_not_for_ever():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    for hints, last in ((early * 3, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), (early * 20, b"")):
        with dripping(hints + last) as url, paced_session(0.5) as session:
            if last:
                assert session.get(url, timeout=5).content == b"ok"
            else:
                with pytest.raises(requests.RequestException, match="sends hints without end"):
                    session.get(url, timeout=5)


@pytest.mark.parametrize(
    ("slow", "said"), [(1000, "less than 1,000 bytes a second"), (0, "what was asked for over more than 0.3 s")]
)
def test_a_server_that_is_too_slow_is_hung_up_on(slow, said):
    for begins in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"):
        with (
            dripping(begins) as url,
            paced_session(0.3, slow=slow) as session,
            pytest.raises(requests.RequestException, match=f"sends {said}"),
        ):
            session.get(url, timeout=5)
