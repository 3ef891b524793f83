"""Links among peers over gRPC: `MeshLinks` is the `fedshare.peers.mesh.Mesh` of one process, for one run.

A neighbour's stream is opened by the one of the two with the higher number. What is agreed on it, and which messages
are in flight, does not depend on connections: `agreement` and `link` know nothing of gRPC and time.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC's core writes lines of its own beside ours
