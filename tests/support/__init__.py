"""What the tests stand on: a gateway, upstreams real and faulty, raw sockets, waiting."""
