"""Terminals and pipes that lack signs, as on Windows: nothing that is said fails for it."""

import os
import subprocess
import sys
from time import sleep

import pytest

from duolora.cli.common import doing, report

TELLING = """
import sys
from time import sleep
import typer
from duolora.cli import main
from duolora.cli.app import app

@app.command()
def tell():
    typer.echo("ΔW = U Σ Vᵀ, λ → 城 \\udcff")
    typer.echo("Δ", err=True)
    print("λ", "é")

main()
"""


def said(encoding, *command):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, *command], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout.decode("utf-8" if encoding == "ascii" else encoding).splitlines()  # click writes UTF-8 for ASCII


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii", "utf-8"])
def test_no_sign_ends_a_command(encoding):
    lines = said(encoding, "-c", TELLING, "tell")
    assert lines[0].startswith({"cp1252": "?W = U ?", "cp932": "ΔW = U Σ"}.get(encoding, ""))
    assert len(lines) == 2


@pytest.mark.parametrize("arguments", [["merge", "--set", "help"], ["bench", "--help"], ["--help"]])
def test_help_is_for_every_terminal(arguments):
    assert said("cp1252", "-m", "duolora", *arguments)


@pytest.mark.parametrize(
    ("terminal", "quiet", "told"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_terminal_is_told_what_takes_seconds(capsys, monkeypatch, terminal, quiet, told):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with doing("Reading a.safetensors", quiet):
        sleep(1.5)
    said = capsys.readouterr().err
    assert ("Reading a.safetensors … 00:01" in said) == told, "with the seconds"
    assert said.endswith("\r") == told, "and taken away"


def test_what_a_name_could_do_to_a_terminal_is_shown(capsys):
    report(False, "a\x1b[31m.safetensors: 3 modules\nΔW")
    assert capsys.readouterr().out == "a\\x1b[31m.safetensors: 3 modules\nΔW\n"
