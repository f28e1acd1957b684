"""Meshes and the one sharding table: `make_mesh(...)`, `Partition(mesh)`."""

from dlmjax.parallel.mesh import make_mesh
from dlmjax.parallel.sharding import RULES, Partition

__all__ = ["RULES", "Partition", "make_mesh"]
