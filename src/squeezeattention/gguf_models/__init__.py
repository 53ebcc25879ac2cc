"""Models in GGUF files, which is what many people have on disk: unpacked once, then loaded like any other model.

The folder is not called ``gguf``: that is the package which reads such files.
"""

from .convert import check_installed
from .model import gguf_config, gguf_folder, load_gguf

__all__ = ["check_installed", "gguf_config", "gguf_folder", "load_gguf"]
