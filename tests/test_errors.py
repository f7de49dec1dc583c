import pytest

from glacier_fastai.errors import DataError, GlacierError, OutputError, note, printable


@pytest.mark.parametrize(
    "text", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\ud800b", "a\0b", "a\x9bb", "é" * 1000, "a\u2028b"]
)
@pytest.mark.parametrize("error", [GlacierError, DataError, OutputError])
def test_errors_are_one_printable_line(error, text):
    line = str(error(f"{text}: no such file"))
    assert line.isprintable() and len(line) <= 400 and line.endswith("no such file")
    line.encode()


def test_what_is_printable_stays():
    assert printable("Gepatschferner, 15 km²: größer") == "Gepatschferner, 15 km²: größer"


def test_notes_are_one_printable_line():
    kept = []
    with pytest.warns(UserWarning, match="is odd"):
        note("a\x1b[2J\nb is odd", kept)
    assert kept == [r"a\x1b[2J\nb is odd"]
