"""git-cluster: several machines, one Git host."""

__version__ = "0.1.0"
