"""DuoLoRA's nodes for ComfyUI: merge a content LoRA and a style LoRA, look into LoRA files, reweight a merge."""

try:
    import duolora as duolora
except ModuleNotFoundError as error:
    raise ImportError(
        f"DuoLoRA's nodes need the package duolora, and {error.name} is missing: run `python -m pip install CLONE`, "
        "with the Python that runs ComfyUI and the path of a clone of DuoLoRA's repository"
    ) from error

from .nodes import DuoLoRAInspect, DuoLoRAMerge, DuoLoRAReweight

NODE_CLASS_MAPPINGS = {node.__name__: node for node in (DuoLoRAMerge, DuoLoRAInspect, DuoLoRAReweight)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DuoLoRAMerge": "DuoLoRA Merge",
    "DuoLoRAInspect": "DuoLoRA Inspect",
    "DuoLoRAReweight": "DuoLoRA Reweight",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
