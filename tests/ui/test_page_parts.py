"""The page's parts without a browser: what is in its fields, and what its buttons change."""

import json
import struct
import tracemalloc
from unittest.mock import MagicMock

import pytest
import torch

from duolora.errors import InputError
from duolora.lora.adapter import Adapter
from duolora.lora.write.file import write_adapter
from duolora.merging.options import METHOD_HELP
from duolora.paper.lowrank import LowRank
from duolora.ui.jobs import Job, Jobs, Worker
from duolora.ui.page import EXAMPLES, Acts, built, example_images, whole
from duolora.ui.work import Asked, Made, News, Side, Wanted, prompt_in

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def gr(tmp_path):
    """A Gradio in which every part is another one, and the page built with it."""
    made = MagicMock()
    for part in ("State", "Textbox", "Dropdown", "Button", "HTML", "Gallery", "Number", "Slider", "File"):
        getattr(made, part).side_effect = lambda *args, **given: MagicMock(args=args, given=given)
    made.page = built(made, Jobs(MagicMock(spec=Worker), tmp_path), "atelier")
    return made


def named(gr, part, id):
    """How the part with this id was made."""
    (found,) = (call for call in getattr(gr, part).call_args_list if call.kwargs.get("elem_id") == id)
    return found


def test_prompts_start_empty(gr):
    for kind in ("content", "style"):
        field = named(gr, "Textbox", f"{kind}-prompt")
        assert not field.args and "value" not in field.kwargs and field.kwargs["placeholder"]


def test_words_come_from_the_file_that_is_dropped_unless_they_were_typed(acts, tmp_path):
    lora = LowRank(torch.ones(8, 1), torch.ones(1, 8))
    for name, words in (("a", {"prompt": "ohwx mug in pencil style"}), ("b", {"prompt": "a sks cat"}), ("none", {})):
        write_adapter(tmp_path / f"{name}.safetensors", Adapter({NAME: lora}, words))
    (tmp_path / "broken.safetensors").write_bytes(b"1234")

    def fill(name, words, filled):
        """What is in the field after the file has been dropped, what came from it, and what is said."""
        path = str(tmp_path / f"{name}.safetensors") if name else None
        found = acts.dropped("style", path, words, filled)
        return found.get("style-words", words), found.get("style-filling", filled), found["style-wrong"]

    mug = prompt_in(tmp_path / "a.safetensors")
    assert mug == "ohwx mug in pencil style"
    assert fill("a", "", "") == fill("a", " ", "") == (mug, mug, "")
    assert fill("b", mug, mug) == ("a sks cat", "a sks cat", ""), "what an earlier file put there is not kept"
    assert fill("none", mug, mug) == fill(None, mug, mug) == ("", "", "")
    words, filled, said = fill("b", "a red mug", mug)
    assert (words, filled) == ("a red mug", mug) and "a sks cat" in said and "bad" not in said
    assert fill("b", "a sks cat", "") == ("a sks cat", "", ""), "the same words need no remark"
    assert fill("none", "a red mug", "") == fill(None, "a red mug", "") == ("a red mug", "", "")
    for words in ("", "a red mug"):
        kept, _, said = fill("broken", words, "")
        assert kept == words and "bad" in said and "broken.safetensors" in said and str(tmp_path) not in said


def test_of_a_file_that_is_dropped_the_header_alone_is_read(tmp_path):
    """The page itself does it: a large file would fill its memory, and a slow pattern would hold it up."""
    size, path = 2**31, tmp_path / "a.safetensors"
    entry = {"dtype": "F16", "shape": [1, size // 2], "data_offsets": [0, size]}
    config = {"unet.alpha_pattern": {r"[\w.]?" * 9999: 4}}
    said = {"duolora": '{"prompt": "a sks cat"}', "lora_adapter_metadata": json.dumps(config)}
    header = json.dumps({f"unet.{NAME}.lora_A.weight": entry, "__metadata__": said}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    tracemalloc.start()
    assert prompt_in(path) == "a sks cat"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_every_method_is_offered_with_its_help(gr):
    offered = named(gr, "Dropdown", "method").args[0]
    assert {name: text for text, name in offered} == {n: f"{n}: {t}" for n, t in METHOD_HELP.items()}


def test_what_is_empty_is_not_shown(gr):
    for id in ("previews", "images", "side-by-side"):
        assert named(gr, "Gallery", id).kwargs["visible"] is False


def test_numbers_are_checked_as_on_the_command_line():
    assert whole("images", None, 1) is None and whole("images", 3.0, 1, 16) == 3
    for value in (0, 2.5, 17, -1):
        with pytest.raises(InputError, match=f"images: expected a whole number from 1 to 16, got {value:g}"):
            whole("images", value, 1, 16)


@pytest.fixture
def acts(gr):
    """What the buttons do, with parts that can be told apart."""
    made = Acts(gr, MagicMock(spec=Jobs))
    for name in ("go", "generate", "against", "write", "halt", "working", "number", "status", "previews", "done",
                 "generate_status", "compare_status", "file_status"):  # fmt: skip
        setattr(made.at, name, name)
    sides = ("content", "style")
    made.at.sides = {kind: (f"{kind}-images", f"{kind}-words", f"{kind}-lora") for kind in sides}
    made.at.notes = {kind: (f"{kind}-wrong", f"{kind}-filling") for kind in sides}
    made.at.more = [f"more-{k}" for k in range(5)]
    made.at.images = "images"
    return made


def job_of(found=None, error=None):
    job = Job("generate", ())
    job.now = News("going")
    job.end(found, error)
    job.news = lambda: iter([News("one"), News("two")])
    return job


def test_buttons_are_disabled_while_something_is_done_and_stop_while_nothing_is(acts):
    acts.jobs.start.return_value = job_of(["image"])
    *during, after = acts.regenerate(0, MagicMock(spec=Made), 4, 0, "a cat", 1.0, 1.0)
    assert len(during) == 2
    for change, busy in [*((change, True) for change in during), (after, False)]:
        assert bool(change["working"]) == busy
        assert all(change[name].given == {"interactive": not busy} for name in ("go", "generate", "against", "write"))
        assert change["halt"].given == {"interactive": busy}
    assert after["generate_status"] == "" and after["images"].given["visible"]


def test_an_error_is_told_in_its_own_line_and_goes_when_the_next_thing_works(acts):
    acts.jobs.start.return_value = job_of(error=InputError("no <b>"))
    *_, after = acts.regenerate(0, MagicMock(spec=Made), 4, 0, "a cat", 1.0, 1.0)
    assert "no &lt;b&gt;" in after["generate_status"] and "bad" in after["generate_status"] and "images" not in after
    acts.jobs.start.return_value = job_of(["image"])
    *_, after = acts.regenerate(0, MagicMock(spec=Made), 4, 0, "a cat", 1.0, 1.0)
    assert after["generate_status"] == ""
    (said,) = acts.regenerate(0, None, 4, 0, "a cat", 1.0, 1.0)
    assert "make a LoRA first" in said["generate_status"]
    (said,) = acts.regenerate(0, MagicMock(spec=Made), 0, 0, "a cat", 1.0, 1.0)
    assert "images: expected a whole number from 1 to 16, got 0" in said["generate_status"]


LINES = {"status": "", "generate_status": "", "compare_status": "", "file_status": ""}


def test_errors_go_when_anything_else_works(acts):
    acts.jobs.start.return_value = job_of([])
    acts.at.files = "files"
    *during, after = acts.export(0, MagicMock(spec=Made), "kohya", 1.0, 1.0)
    for change in during:
        assert {**LINES, "file_status": change["file_status"]}.items() <= change.items()
    assert after.items() >= LINES.items() and "done" not in after, "what was made is still told"


def test_errors_go_with_an_example_unless_something_is_being_done(acts, tmp_path):
    acts.jobs.folder = tmp_path
    found = acts.example(EXAMPLES[0], 0)
    assert found.items() >= {**LINES, "content-wrong": "", "style-wrong": ""}.items() and "done" not in found
    assert "status" not in acts.example(EXAMPLES[0], 7), "how far the work is stays"


def test_words_of_a_merge_that_is_opened_again_are_its_files(acts, tmp_path):
    file, images = Side((), "a sks cat", tmp_path / "a.safetensors"), Side((tmp_path / "a.png",), "zwx style")
    found = acts._fields(Asked(file, images))
    assert (found["content-filling"], found["style-filling"]) == ("a sks cat", "")


def test_stop_is_for_what_this_page_is_doing(acts):
    acts.jobs.start.return_value = job = job_of()
    running = acts.regenerate(0, MagicMock(spec=Made), 4, 0, "a cat", 1.0, 1.0)
    working = next(running)["working"]
    acts.stop(0)
    acts.jobs.stop.assert_not_called()
    acts.stop(working)
    acts.jobs.stop.assert_called_once_with(job)


def test_references_are_left_of_every_row_of_a_comparison(acts, tmp_path):
    for kind in ("content", "style"):
        (tmp_path / kind).mkdir()
        for k in range(2):
            (tmp_path / kind / f"{k}.png").touch()
    acts.at.side_by_side = "side_by_side"
    acts.jobs.start.return_value = job_of({"naive": ["n0", "n1"], "duolora": ["d0", "d1"]})
    made = Made(tmp_path, Asked(Side(), Side()), "a cat", "")
    *_, after = acts.compare(0, made, 2, 0, ["naive", "duolora"], "a cat", 0.5, 1.0)
    acts.jobs.start.assert_called_once_with("compare", made, ["naive", "duolora"], Wanted("a cat", 0.5, 1.0, 2))
    references = [(tmp_path / "content" / "0.png", "subject"), (tmp_path / "style" / "0.png", "style")]
    rows = after["side_by_side"]
    assert rows.args[0] == [*references, ("n0", "naive"), ("n1", "naive"), *references, ("d0", "duolora"),
                            ("d1", "duolora")]  # fmt: skip
    assert rows.given["columns"] == 4


def test_examples_have_images_of_both_sides(tmp_path):
    for pair in EXAMPLES:
        found = example_images(pair, tmp_path)
        assert len(found["content"]) > 1 and len(found["style"]) == 1
        assert all(path.exists() for paths in found.values() for path in paths)
    assert example_images(EXAMPLES[0], tmp_path)["style"] != example_images(EXAMPLES[1], tmp_path)["style"]
