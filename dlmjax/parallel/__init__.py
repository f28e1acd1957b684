"""Meshes, the one sharding table, and one answer for all processes: `make_mesh(...)`, `Partition(mesh)`, `Agreement()`."""

from dlmjax.cluster.agree import Agreement, any_process, refused_together
from dlmjax.parallel.mesh import make_mesh
from dlmjax.parallel.placement import UNPLACED, Placement
from dlmjax.parallel.sharding import RULES, Partition

__all__ = ["RULES", "UNPLACED", "Agreement", "Partition", "Placement", "any_process", "make_mesh", "refused_together"]
