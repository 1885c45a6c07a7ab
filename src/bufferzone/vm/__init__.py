"""One VM and its helpers, cold or restored: its shape, its channels, the agent, what it may leave behind."""
