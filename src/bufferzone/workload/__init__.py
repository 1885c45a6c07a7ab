"""What a person asks for becomes a bundle of ours and a container. The library and `bz` stand on it."""
