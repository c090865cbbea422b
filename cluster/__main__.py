"""`python -m cluster`: the same as `git-cluster`."""

from cluster.cli import main

main()
