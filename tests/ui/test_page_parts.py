"""The page's parts without a browser: what is in its fields, and what a dropped file fills in."""

from unittest.mock import MagicMock

import torch

from duolora.lora.adapter import Adapter
from duolora.lora.write.file import write_adapter
from duolora.merging.options import METHOD_HELP
from duolora.paper.lowrank import LowRank
from duolora.ui.page import built
from duolora.ui.work import Studio, Worker, prompt_in

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def test_prompts_start_empty_and_come_from_the_file_that_is_dropped(tmp_path):
    gr = MagicMock()
    built(gr, Worker(Studio, tmp_path), "atelier")
    fields = {call.kwargs.get("elem_id"): call for call in gr.Textbox.call_args_list}
    for kind in ("content", "style"):
        assert not fields[f"{kind}-prompt"].args and "value" not in fields[f"{kind}-prompt"].kwargs
        assert fields[f"{kind}-prompt"].kwargs["placeholder"]
    assert gr.File.return_value.upload.call_count == 2
    fill = gr.File.return_value.upload.call_args.args[0]
    lora = LowRank(torch.ones(8, 1), torch.ones(1, 8))
    write_adapter(tmp_path / "a.safetensors", Adapter({NAME: lora}, {"prompt": "ohwx mug in pencil style"}))
    write_adapter(tmp_path / "b.safetensors", Adapter({NAME: lora}))
    assert fill(str(tmp_path / "a.safetensors")) == prompt_in(tmp_path / "a.safetensors") == "ohwx mug in pencil style"
    assert fill(str(tmp_path / "b.safetensors")) == ""


def test_every_method_is_offered_with_its_help(tmp_path):
    gr = MagicMock()
    built(gr, Worker(Studio, tmp_path), "atelier")
    (methods,) = (c for c in gr.Dropdown.call_args_list if c.kwargs.get("elem_id") == "method")
    assert {name: text for text, name in methods.args[0]} == {n: f"{n}: {t}" for n, t in METHOD_HELP.items()}
