"""bufferzone: containers inside lean virtual machines. Importing this imports nothing else."""

__version__ = "0.1.0"
