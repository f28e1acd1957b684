"""Meshes, the one sharding table, and one answer for all processes: `make_mesh(...)`, `Partition(mesh)`, `Agreement()`."""

from dlmjax.parallel.agree import Agreement
from dlmjax.parallel.mesh import make_mesh
from dlmjax.parallel.sharding import RULES, Partition

__all__ = ["RULES", "Agreement", "Partition", "make_mesh"]
