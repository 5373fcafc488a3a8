"""Wire formats of Coalface."""
