"""Writing in the background."""

import threading

import pytest

from headstart.training.writer import Writer


def test_things_are_done_in_their_order_in_one_other_thread():
    writer, seen = Writer(), []
    for number in range(50):
        writer.submit(lambda number=number: seen.append((number, threading.current_thread())))
    writer.wait()
    assert [number for number, _ in seen] == [*range(50)]
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.current_thread()
    writer.close()


def test_nobody_waits_for_what_is_being_done():
    writer, go, seen = Writer(), threading.Event(), []
    writer.submit(go.wait)
    writer.submit(lambda: seen.append("after"))
    assert seen == []
    go.set()
    writer.wait()
    assert seen == ["after"]
    writer.close()


def broken() -> None:
    raise OSError("full")


def test_what_goes_wrong_is_raised_once_and_nothing_after_it_is_done():
    writer, go, seen = Writer(), threading.Event(), []
    writer.submit(lambda: go.wait() and broken())
    writer.submit(lambda: seen.append("after"))
    go.set()
    with pytest.raises(OSError, match="full"):
        writer.wait()
    assert seen == []
    writer.wait()
    writer.submit(lambda: seen.append("anew"))
    writer.wait()
    assert seen == ["anew"]
    writer.close()


def test_what_went_wrong_before_is_raised_where_the_next_thing_is_asked_for():
    writer = Writer()
    writer.submit(broken)
    writer.close()
    with pytest.raises(OSError, match="full"):
        writer.submit(broken)
