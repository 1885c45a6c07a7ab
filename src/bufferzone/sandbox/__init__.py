"""The only package that knows the order of things: plan, boot, containers, clean-up.

`plan` decides (pure), `boot` acts once per VM, `containers` acts once per container, `agent` is the channel.
Everything here runs inside the shim.
"""
