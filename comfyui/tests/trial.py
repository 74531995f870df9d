"""The node pack inside the real ComfyUI, without a browser: run, cache, interrupt, fail, and compare with diffusers.

    PYTHONPATH=.:tests python comfyui/tests/trial.py COMFYUI WORK

with the Python that runs ComfyUI and has duolora. COMFYUI is its folder, WORK an empty one. A tiny checkpoint of SDXL's
depths (`tiny_sdxl.py`) and two random LoRAs are put there, ComfyUI is started on the CPU at a port of this machine, and
each check prints what it measured; the first that fails ends it.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tiny_sdxl
import torch
from aiohttp import ClientSession, ClientWebSocketResponse
from PIL import Image

import duolora
from duolora.lora.adapter import Adapter
from duolora.lora.read.file import read_adapter
from duolora.lora.write.file import write_adapter
from duolora.model.architectures import PROJECTION
from duolora.paper.lowrank import LowRank
from tiny import save_single_file

PACK = Path(__file__).parents[1]
PROMPT, STEPS, GUIDANCE, SEED, SIZE = "a sks dog in zwx style", 4, 5.0, 7, 128
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def main() -> None:
    """Everything, in order."""
    comfy, work = (Path(each).resolve() for each in sys.argv[1:3])
    make(work)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "main.py", "--port", str(port), "--base-directory", str(work), "--disable-api-nodes"]
    command += ["--cpu", "--force-fp32", "--fp32-text-enc"]
    with (work / "comfyui.log").open("w") as log:
        server = subprocess.Popen(command, cwd=comfy, stdout=log, stderr=log)
        try:
            asyncio.run(checks(work, f"http://127.0.0.1:{port}", server))
        finally:
            server.terminate()
            server.wait()


def make(work: Path) -> None:
    """The folders of ComfyUI, with the checkpoint, the LoRAs and the two packs in them."""
    for name in ("models/checkpoints", "models/loras", "custom_nodes", "input", "output", "user"):
        (work / name).mkdir(parents=True, exist_ok=True)
    os.symlink(PACK, work / "custom_nodes" / "duolora")
    shutil.copy(tiny_sdxl.__file__, work / "custom_nodes")
    checkpoint = work / "models/checkpoints/tiny.safetensors"
    save_single_file(tiny_sdxl.pipeline(work / "configs"), checkpoint)
    shapes = duolora.load_base(checkpoint, "cpu").lora_shapes()
    for seed, (name, prompt) in enumerate((("content", "a sks dog"), ("style", "a house in zwx style"))):
        rng, modules = torch.Generator().manual_seed(seed), {}
        for module, (d_out, d_in) in shapes.items():
            if PROJECTION.fullmatch(module) or (module.startswith("text_encoder") and "self_attn" in module):
                up, down = torch.randn(d_out, 4, generator=rng), torch.randn(4, d_in, generator=rng)
                modules[module] = LowRank(up * d_out**-0.5, down * d_in**-0.5, 0.5)
        write_adapter(work / f"models/loras/{name}.safetensors", Adapter(modules, {"prompt": prompt}))


def graph(**inputs: Any) -> dict[str, Any]:
    """The workflow: merge, inspect, generate, and save the patched weights; `inputs` go into the merge."""
    merge = {"content_lora": "content.safetensors", "style_lora": "style.safetensors", "method": "ziprank"}
    merge |= {"content_strength": 1.0, "style_strength": 1.0, "steps": 20, "seed": 0}
    merge |= {"model": ["1", 0], "clip": ["1", 1], "content_images": ["12", 0], "style_images": ["13", 0]}
    text = {"clip": ["2", 1]}
    sampler = {"sampler_name": "euler", "scheduler": "simple", "steps": STEPS, "cfg": GUIDANCE, "seed": SEED}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny.safetensors"}),
        "2": ("DuoLoRAMerge", merge | inputs),
        "3": ("CLIPTextEncode", text | {"text": PROMPT}),
        "4": ("CLIPTextEncode", text | {"text": ""}),
        "5": ("EmptyLatentImage", {"width": SIZE, "height": SIZE, "batch_size": 1}),
        "6": ("KSampler", sampler | {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "denoise": 1.0}
              | {"latent_image": ["5", 0]}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "image"}),
        "9": ("CheckpointSave", {"model": ["2", 0], "clip": ["2", 1], "vae": ["1", 2], "filename_prefix": "patched"}),
        "10": ("DuoLoRAInspect", {"lora_name": "content.safetensors", "merged": ["2", 2]}),
        "11": ("PreviewAny", {"source": ["10", 0]}),
        "12": ("EmptyImage", {"width": SIZE, "height": SIZE, "batch_size": 2, "color": 0x2040C0}),
        "13": ("EmptyImage", {"width": SIZE, "height": SIZE, "batch_size": 1, "color": 0xC0A010}),
    }  # fmt: skip
    return {number: {"class_type": name, "inputs": given} for number, (name, given) in nodes.items()}


def reweighted(name: str, content: float, style: float) -> dict[str, Any]:
    """The same with the parts of a merge reweighted, in place of the merge."""
    chosen = {"lora_name": name, "content_strength": content, "style_strength": style, "save": True}
    node = {"class_type": "DuoLoRAReweight", "inputs": chosen | {"model": ["1", 0], "clip": ["1", 1]}}
    kept = {number: each for number, each in graph().items() if int(number) < 9}
    return kept | {"2": node}


async def checks(work: Path, address: str, server: subprocess.Popen) -> None:
    """Each check, with what it measured."""
    async with ClientSession(address) as session:
        await started(session, server)
        async with session.get("/object_info") as answer:
            listed = sorted(name for name in await answer.json() if name.startswith("DuoLoRA"))
        say("nodes", ", ".join(listed), listed == ["DuoLoRAInspect", "DuoLoRAMerge", "DuoLoRAReweight"])
        async with session.ws_connect("/ws?clientId=trial", max_msg_size=0) as socket:
            begun = time.perf_counter()
            events = await run(session, socket, graph())
            bar = [(d["value"], d["max"]) for kind, d in events if kind == "progress" and d["node"] == "2"]
            took = f"{time.perf_counter() - begun:.0f} s"
            why = events[-1][1].get("exception_message", "")
            say("workflow", f"{events[-1][0]} after {took} {why}", events[-1][0] == "execution_success")
            say("bar", str(bar), bar == [(1, 20), (11, 20), (20, 20)])
            output = {d["node"]: d["output"] for kind, d in events if kind == "executed"}
            name = output["2"]["text"][0]
            say("inspect", output["11"]["text"][0].splitlines()[1], name in output["11"]["text"][0])
            compare_images(work, name, "image_00001_.png")
            compare_weights(work, name, next((work / "output").glob("patched_*")))

            events = await run(session, socket, graph())
            cached = next(set(d["nodes"]) for kind, d in events if kind == "execution_cached")
            say("cache", f"{len(cached)} of 13 nodes cached", {"1", "2", "6", "10"} <= cached)

            merges = set((work / "models/loras/duolora").glob("*"))
            events = await run(session, socket, graph(steps=5000), stop=True)
            left = {path.name for path in set((work / "models/loras/duolora").glob("*")) - merges}
            say(
                "interrupt",
                f"{events[-1][0]}, {events[-1][1]['waited']:.1f} s after it was asked for; left: {left}",
                events[-1][0] == "execution_interrupted" and not [name for name in left if "ckpt" not in name],
            )

            events = await run(session, socket, reweighted("content.safetensors", 1.0, 1.0))
            said = events[-1][1].get("exception_message", "").splitlines()
            say("error", said[0], "expected a merge whose header says" in said[0])

            events = await run(session, socket, reweighted(name, 0.5, 1.5))
            say("reweight", events[-1][0], events[-1][0] == "execution_success")
            saved = f"{Path(name).stem}-content0.5-style1.5.safetensors"
            compare_images(work, f"duolora/{saved}", "image_00002_.png")


async def started(session: ClientSession, server: subprocess.Popen) -> None:
    """Wait until ComfyUI answers."""
    while server.poll() is None:
        try:
            async with session.get("/system_stats") as answer:
                system = (await answer.json())["system"]
                print(f"ComfyUI {system['comfyui_version']}, torch {system['pytorch_version']}")
                return
        except OSError:
            await asyncio.sleep(1)
    sys.exit("ComfyUI has ended; see comfyui.log")


async def run(
    session: ClientSession, socket: ClientWebSocketResponse, prompt: dict[str, Any], stop: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """What ComfyUI says while a workflow runs; with `stop` it is interrupted once the bar of the merge moves."""
    async with session.post("/prompt", json={"prompt": prompt, "client_id": "trial"}) as answer:
        told = await answer.json()
    if "prompt_id" not in told:
        sys.exit(f"refused: {told}")
    events, asked = [], 0.0
    async for message in socket:
        if not isinstance(message.data, str):
            continue
        event = message.json()
        kind, data = event["type"], event["data"]
        events.append((kind, data))
        if stop and kind == "progress" and not asked:
            asked = time.perf_counter()
            await session.post("/interrupt")
        if kind in ENDS and data["prompt_id"] == told["prompt_id"]:
            data["waited"] = time.perf_counter() - asked
            break
    return events


def compare_images(work: Path, name: str, image: str) -> None:
    """ComfyUI's image beside that of diffusers' own pipeline with the same file, prompt, noise and timesteps."""
    found = np.asarray(Image.open(work / "output" / image)).astype(int)
    pipeline = duolora.load_base(work / "models/checkpoints/tiny.safetensors", "cpu").pipeline()
    plain = generated(pipeline)
    pipeline.load_lora_weights(str(work / "models/loras"), weight_name=name)
    error, control = np.abs(found - generated(pipeline)), np.abs(found - plain)
    text = f"off by {error.max()} of 255 at most, {error.mean():.4f} in the mean; without the LoRA {control.mean():.2f}"
    say(f"image with {name}", text, error.max() <= 1 and control.mean() > 1)


def generated(pipeline: Any) -> np.ndarray:
    """An image as ComfyUI's euler and simple make it."""
    torch.manual_seed(SEED)
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8)
    done = pipeline(
        PROMPT, negative_prompt="", height=SIZE, width=SIZE, guidance_scale=GUIDANCE, latents=noise,
        timesteps=[999 - int(k * 1000 / STEPS) for k in range(STEPS)], output_type="np",
    )  # fmt: skip
    return (done.images[0] * 255).astype(np.uint8).astype(int)


def compare_weights(work: Path, name: str, patched: Path) -> None:
    """What ComfyUI added to each weight beside the ΔW of the file."""
    before, after = (duolora.load_base(path, "cpu") for path in (work / "models/checkpoints/tiny.safetensors", patched))
    merge = read_adapter(work / "models/loras" / name)
    errors, norms = {}, {}
    for module, lora in merge.modules.items():
        weights = [weight_of(base, module) for base in (before, after)]
        errors[module] = (weights[1] - weights[0] - lora.delta()).norm().item()
        norms[module] = lora.delta().norm().item()
    worst = max(errors[module] / norms[module] for module in errors)
    text = (
        f"{len(errors)} modules, of {sum('text_enc' in m for m in errors)} in text encoders; off by {worst:.1e} at most"
    )
    say("weights", text, worst < 1e-3)


def weight_of(base: Any, module: str) -> torch.Tensor:
    """The weight of a module by the name that adapters use."""
    part, _, inside = module.partition(".") if module.startswith("text_encoder") else ("unet", "", module)
    network = getattr(base.pipeline(), part)
    if part != "unet" and not hasattr(network, "text_model"):
        inside = inside.removeprefix("text_model.")
    return network.get_submodule(inside).weight


def say(check: str, text: str, passed: bool) -> None:
    """A check's line; a check that fails ends the trial."""
    print(f"{'ok ' if passed else 'NO '} {check}: {text}", flush=True)
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
