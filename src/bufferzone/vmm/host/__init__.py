"""A VMM without a VM: the agent on the host. It is no wall; only an operator's setting chooses it."""
