"""Backends: each runs a bundle's graphs on one kind of device. `registry` lists them, `base` is the interface."""
