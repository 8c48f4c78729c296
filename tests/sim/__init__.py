"""Deterministic simulation: the whole real server and many real clients in one process, on a
virtual clock and a seeded network.  A seed that fails, fails again."""
