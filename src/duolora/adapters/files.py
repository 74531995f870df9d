"""The one door to LoRA files: what the rest of the program reads and writes them with."""

from duolora.adapters.proof import Proof
from duolora.adapters.reading import check_fits, read_adapter
from duolora.adapters.staging import check_writable
from duolora.adapters.writing import FORMATS, Format, write_adapter

__all__ = ["FORMATS", "Format", "Proof", "check_fits", "check_writable", "read_adapter", "write_adapter"]
