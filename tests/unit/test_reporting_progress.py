from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from parrot_dist.reporting.progress import Follower, Progress


def piped():
    stream = io.StringIO()
    return stream, Console(file=stream, width=80)


def terminal():
    stream = io.StringIO()
    return stream, Console(file=stream, force_terminal=True, width=120, _environ={"TERM": "xterm"})


@given(st.integers(1, 300), st.integers(1, 3))
def test_a_log_gets_few_lines_an_epoch(steps, epochs):
    stream, console = piped()
    progress = Progress(epochs, console)
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            progress.update(epoch, step, steps, 1.0, 100.0)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == epochs * min(steps - 1, 9)
    assert len(set(lines)) == len(lines)


def test_a_log_has_no_control_characters_and_whole_lines():
    stream, console = piped()
    progress = Progress(12, console)
    progress.update(2, 40, 100, 1.23456, 321.0)
    progress.message("[bold]kept as it is[/bold] :smile: " + "long " * 40)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch  2/12  step  40/100  loss 1.2346    321.0 utt/s"
    assert lines[1].startswith("[bold]kept as it is[/bold] :smile: long")
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar_and_messages_above_it():
    stream, console = terminal()
    progress = Progress(3, console)
    progress.update(1, 5, 10, 0.5, 12.0)
    progress.message("epoch 1 is done")
    progress.update(2, 1, 10, 0.25, 13.0)
    progress.close()
    shown = stream.getvalue()
    assert "epoch 1/3" in shown
    assert "step  1/10  loss 0.2500     13.0 utt/s" in shown
    assert "epoch 1 is done\n" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back


@pytest.mark.parametrize("kind", [piped, terminal])
def test_closing_twice_or_before_the_first_step_does_nothing(kind):
    stream, console = kind()
    progress = Progress(3, console)
    progress.close()
    progress.close()
    assert stream.getvalue() == ""


def test_a_follower_turns_the_log_of_a_job_into_a_bar_again():
    stream, console = piped()
    progress = Progress(2, console)
    for step in range(1, 31):
        progress.update(1, step, 30, 1.5, 42.0)
    progress.message("epoch 1/2  loss 1.5000  UAR 0.500")
    lines = stream.getvalue().splitlines()
    shown, terminal_console = terminal()
    follower = Follower(terminal_console)
    for text in lines:
        follower.show(text)
    follower.close()
    assert "UAR 0.500" in shown.getvalue()
    assert "step 27/30" in shown.getvalue()
    assert lines[0] not in shown.getvalue()
    plain, plain_console = piped()
    follower = Follower(plain_console)
    for text in lines:
        follower.show(text)
    assert plain.getvalue().splitlines() == lines
