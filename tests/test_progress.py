"""How far work has come is shown where somebody asks, and told where somebody listens."""

from duolora.progress import counted, counting, shown, tell, through


def test_steps_are_counted_on_stderr_where_they_are_to_be_shown(capsys):
    for progress in (False, True):
        assert list(counted(range(3, 5), "Training", progress, 5, leave=True)) == [3, 4]
        assert ("5/5" in capsys.readouterr().err) == progress


def test_steps_are_told_to_whoever_listens():
    said = []
    tell(lambda *step: said.append(step))
    try:
        list(counted(range(3, 5), "Training", False, 5))
        with counting("Generating", 2) as step:
            step()
    finally:
        tell(None)
    list(counted(range(2), "Training", False))
    assert said == [("Training", 4, 5), ("Training", 5, 5), ("Generating", 1, 2)]


def test_modules_are_counted_only_where_they_take_long(capsys, monkeypatch):
    assert list(through([1, 2], "Verifying")) == [1, 2]
    with shown():
        assert list(through([1, 2], "Verifying")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("duolora.progress.DELAY", 0)
    with shown():
        assert list(through([1, 2], "Verifying")) == [1, 2]
    assert "Verifying" in capsys.readouterr().err
