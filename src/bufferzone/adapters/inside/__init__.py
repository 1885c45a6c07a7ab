"""Programs that the adapters run in sandboxes, as text: whatever Python is there. Never imported here."""
