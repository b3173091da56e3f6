"""The window: pages that show what the platform does."""
