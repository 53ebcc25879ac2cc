"""Everything that touches a transformers model: its layout, its attention functions, its generate."""
