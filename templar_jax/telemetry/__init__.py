"""Typed events of a node, and the sinks that write or show them."""
