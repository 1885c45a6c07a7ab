"""Host halves of what a guest sees as files: the shared tree with virtiofsd, and memory as a file."""
