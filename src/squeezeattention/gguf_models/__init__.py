"""Models in GGUF files, which is what many people have on disk: unpacked once, then loaded like any other model.

The folder is not called ``gguf``: that is the package which reads such files.
"""

from .model import gguf_config, gguf_folder, load_gguf

__all__ = ["gguf_config", "gguf_folder", "load_gguf"]
