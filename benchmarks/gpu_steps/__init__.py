"""The steps of ``benchmarks/gpu.py``, each a function of a :class:`common.Session`."""
