"""Exact attention by positions: blocks in prefill, one query in decode, re-rotation of sinks."""
