"""Bricks: layers that two or more systems share. Nothing here knows a file, a device, a clock or a published layout."""
