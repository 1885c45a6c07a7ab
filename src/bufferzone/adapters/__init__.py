"""Sandboxes for those who already have code: a pytest fixture, an executor, a tool for agents.

Each is a module of its own that nobody else imports, and stands on the library. `inside/` runs in sandboxes.
"""
