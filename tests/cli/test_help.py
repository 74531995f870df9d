"""Help: whole, quick, and with examples that the commands would take."""

import os
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from command import WHOLE, run
from duolora.cli.set_option import TOPICS, listed
from duolora.merging.options import METHOD_HELP, METHODS, WEIGHTS, MergeOptions
from duolora.model.defaults import GUIDANCE
from duolora.options import told
from duolora.training.options import TrainOptions


def leaves(command, path=()):
    for name in command.list_commands(None):
        sub = command.get_command(None, name)
        yield from leaves(sub, (*path, name)) if hasattr(sub, "list_commands") else [((*path, name), sub)]


LEAVES = dict(leaves(WHOLE))


def shown(*words):
    done = run(*words, "--help", env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def flat(text):
    return "".join(text.split())


def test_help_takes_less_than_a_second_and_imports_nothing_heavy():
    code = """
import os, sys
from duolora.cli.app import app
app(["--help"], standalone_mode=False)
used = os.times()
print("|", *sys.modules, used.user + used.system)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, measured = done.stdout.rpartition("|")
    *modules, seconds = measured.split()
    assert "merge" in text
    assert not {"torch", "diffusers", "numpy"} & set(modules)
    assert float(seconds) < 1


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_nothing_is_swallowed_and_real_examples_come_last(path):
    text = shown(*path)
    for parameter in LEAVES[path].params:
        if told := getattr(parameter, "help", None):
            assert flat(told) in flat(text)
    examples = [line.strip() for line in text.partition("Examples:\n")[2].splitlines()]
    assert 1 <= len(examples) <= 3
    for example in examples:
        words = shlex.split(example)
        assert words[: len(path) + 1] == ["duolora", *path]
        if example != "duolora merge --set help":
            with LEAVES[path].make_context(path[-1], words[len(path) + 1 :]) as context:
                assert context.params


@pytest.mark.parametrize("path", [(), ("bench",), ("bench", "study"), ("datasets",)], ids=" ".join)
def test_summaries_of_commands_are_not_cut_short(path):
    assert "..." not in shown(*path).partition("Commands:")[2]


def test_defaults_in_the_help_are_the_real_ones():
    train, paper = flat(shown("train")), TrainOptions()
    for name in ("rank", "steps", "batch", "lr", "caption_dropout"):
        assert flat(f"[{getattr(paper, name):g}, or the base's own]") in train
        assert flat(told(TrainOptions, name)) in train
    for name in ("steps", "content_weight", "style_weight"):
        assert flat(f"[{getattr(MergeOptions(), name):g}, or the method's own]") in flat(shown("merge"))
    assert flat(f"[{GUIDANCE:g}, or the base's own]") in flat(shown("generate"))


def test_help_names_every_method_and_every_preset():
    assert flat(", ".join(METHODS)) in flat(shown("merge"))
    assert flat(", ".join(WEIGHTS)) in flat(shown("merge"))


@pytest.mark.parametrize("before", [[], ["--method", "oneshot"], ["--set", "lr=1"]])
def test_options_are_listed_before_anything_else_is_asked_for(before):
    done = run("merge", *before, "--set", "help")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == listed()


def test_every_option_is_listed_with_type_default_and_text():
    entries = {}
    for line in listed().splitlines():
        if not line.startswith((" ", "#")):
            name, _, default = line.partition("=")
            assert default == str(getattr(MergeOptions(), name))
            entries[name] = ""
        elif line.startswith(" "):
            entries[name] += " " + line.strip()
    assert set(entries) == set(MergeOptions.__dataclass_fields__)
    assert all(len(text.partition(" [")[0]) > 15 for text in entries.values()), "a text for each"
    assert entries["norm"].endswith("[one of diag, vector]")
    assert entries["lr"].endswith("[a number above 0]")
    assert entries["batch"].endswith("[a whole number, 1 or more]")
    assert entries["masks"].endswith("output for ziplora]")
    assert "singular ones (Def. 2's U Σ Vᵀ)" in entries["basis"]


def test_every_method_has_a_line_of_help():
    assert set(METHOD_HELP) == set(METHODS)
    for name, text in METHOD_HELP.items():
        assert flat(f"{name} {text}") in flat(shown("merge"))
        assert ("no base" in text) is not METHODS[name].asks_network
        assert ("needs the base" in text) is METHODS[name].asks_network


def test_options_are_listed_by_topic_the_common_ones_first():
    topics = [line for line in listed().splitlines() if line.startswith("# ")]
    assert topics == [f"# {topic}" for topic in TOPICS]
    lines = listed().splitlines()
    assert lines.index("steps=100") < lines.index("masks=rank") < lines.index("calls=8")
    assert "For svd, ties and dare_ties." in flat_words(listed())


def flat_words(text):
    return " ".join(text.split())


def test_the_version_is_said():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"duolora {version('duolora')}\n")


def test_a_command_ends_with_its_last_line_and_collects_no_garbage_after_it():
    code = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count())); "
    code += "from duolora.cli import main; sys.argv = ['duolora', '--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) > 10_000


def test_shells_can_complete():
    assert "--install-completion" in shown()


def test_help_is_as_wide_as_the_terminal():
    widths = []
    for columns in (70, 140):
        command, there = [sys.executable, "-m", "duolora", "train", "--help"], {**os.environ, "COLUMNS": str(columns)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=there)
        widths.append(max(map(len, done.stdout.partition("Examples:")[0].splitlines())))
    assert widths[0] <= 70 < 100 < widths[1] <= 140


@pytest.mark.parametrize("place", [0, 1, 2, 99])
def test_the_file_of_options_may_stand_anywhere(tmp_path, place):
    config = tmp_path / "c.toml"
    config.write_text('[merge]\nmethod = "nosuch"\n')
    words = ["merge", "a", "b", "--out", str(tmp_path / "x.safetensors")]
    for given in (["--config", str(config)], [f"--config={config}"]):
        done = run(*words[:place], *given, *words[place:])
        assert done.exit_code == 1 and "got 'nosuch'" in done.stderr


@pytest.mark.parametrize("path", [path for path in LEAVES if path[0] != "bench"], ids=" ".join)
def test_help_speaks_the_language_of_the_field(path):
    text = shown(*path)
    words = "picture draw learnt prove proof mirror unconditional watch halves"
    for word in ("brings out", *words.split()):
        assert word not in text.lower(), word


def test_the_dtype_of_the_file_and_that_of_the_base_have_two_names():
    for path, command in LEAVES.items():
        for parameter in command.params:
            if "--dtype" in parameter.opts and path[0] in ("train", "generate", "merge", "convert", "compose", "demo"):
                assert "numbers of the file" in parameter.help
            if "--base-dtype" in parameter.opts:
                assert "computes in" in parameter.help
