"""The host's half of networking: what is in a network namespace, taps, and what joins the two."""
