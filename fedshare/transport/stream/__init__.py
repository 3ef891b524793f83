"""Messages of any size between a server and its clients, over one long-lived gRPC stream a client.

The only importer of grpc. What a message means is for others to say: here it is a sequence of bytes.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC's core writes lines of its own beside ours; see `grpc_log`
