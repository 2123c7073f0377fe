"""Tiered storage: real object stores, and faults between them and us."""
