"""Wire formats; the path of a .proto is its Python package."""
