"""Puts the parts together: one refresh, the service, the demo."""
