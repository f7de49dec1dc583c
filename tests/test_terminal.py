import sys

from glacier_fastai.terminal import in_terminal


def test_a_notebook_is_no_terminal_though_its_commands_see_one(monkeypatch):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert not in_terminal()  # pytest catches what is said
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert in_terminal()
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    assert not in_terminal()
