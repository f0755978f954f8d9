"""Who is it: `base` has what a device claims, the others are ways to check that; `choice` takes one by the settings."""
