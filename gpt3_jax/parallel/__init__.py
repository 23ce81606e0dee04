"""Meshes, sharding rules, collectives, and ZeRO."""
