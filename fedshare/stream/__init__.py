"""Messages of any size between a server and its clients, over one long-lived gRPC stream a client.

The only importer of grpc. What a message means is for others to say: here it is a sequence of bytes.
"""
