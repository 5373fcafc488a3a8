from pathlib import Path

from tests.trainer.journals import read_journal, read_steps
from trainer.journal import Journal, journal_path


def test_a_line_torn_by_a_kill_costs_that_line_only(tmp_path: Path) -> None:
    path = journal_path(tmp_path / "new", 0)
    with Journal(path) as journal:
        journal.write("step", step=0, loss=1.0)
    with path.open("a") as file:
        file.write('{"event": "step", "ste')
    with Journal(path) as journal:
        journal.write("step", step=1, loss=0.5)
    assert [event["step"] for event in read_journal(path)] == [0, 1]


def test_of_a_step_trained_twice_the_later_line_counts(tmp_path: Path) -> None:
    path = journal_path(tmp_path, 3)
    with Journal(path) as journal:
        for step, loss in [(0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0)]:
            journal.write("step", step=step, loss=loss)
        journal.write("checkpoint", step=5)
    assert [(s, event["loss"]) for s, event in read_steps(path).items()] == [
        (0, 1.0),
        (1, 4.0),
        (2, 3.0),
    ]


def test_a_late_thread_cannot_break_a_closed_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write("step", step=0)
    journal.write("step", step=1)
    assert len(read_journal(tmp_path / "j")) == 1
