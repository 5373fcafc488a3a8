"""Version 1 of the wire format: mining.proto and its generated stubs."""
