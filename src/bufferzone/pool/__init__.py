"""VMs that wait for containers: the keeper and the processes that it hands over."""
