"""Time and memory of the parts, next to what a user would take instead."""
