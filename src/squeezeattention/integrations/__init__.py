"""Other people's tools, with a squeezed cache. Nothing here is imported unless it is asked for."""
