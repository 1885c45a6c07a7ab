"""containerd-shim-bufferzone-v2 and the process behind the CLI: the Task API in front of one sandbox."""
