"""What running sandboxes really hold, and what of the machine weakens their walls. Reads, changes nothing.

`held` reads a process from /proc; `sandboxes` says which there are; `walls`, `jailed`, `hypervisor`, `host`
and `configuration` compare with what should be; `report` puts it together, `page` draws it.
"""
