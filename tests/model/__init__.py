"""A model for scale: how pushes and reads go with more devices, more repositories and longer distances.

    python -m tests.model              simulate, draw, and rewrite docs/scale-model.md from calibration.json
    python -m tests.model.measure      calibrate and measure here (root on Linux): rewrites calibration.json

What is where:

    constants.py     what a push, a sync and a read cost, as calibration.json has it
    simulation.py    the simulation: a push, a sync and a read, step by step
    parts.py         what they wait for, what is decided before a run, and what comes out
    scenarios.py     what is both simulated and measured
    curves.py        what is only simulated: more devices, more repositories, longer distances
    report.py        the tables of docs/scale-model.md; plot.py draws
    site.py          a cluster with people who push and read; distance.py and delay.py put it apart
    calibrate.py     from single pushes to the constants; trips.py counts statements
    instruments.py   reading what a step took: a device's figures, /proc, PostgreSQL's log

Nothing of the product knows of this.
"""
