"""Torture: clients push, delete, fetch and list while a nemesis breaks things, and a checker goes through the history.

plan      what clients and nemesis are going to do, from a seed (pure)
clients   stock Git over ssh; what was asked and what was answered, with the times
nemesis   kills, pauses, cuts off and wipes, and undoes it again
run       all of it together on a real cluster, then the checks and the figures
mutants   builds with one safety check taken out: what the checker has to find

python -m tests.torture --operations 2000 --clients 6 --devices 3 --seed 7
"""
