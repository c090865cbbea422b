"""`make bench`: how fast it is, as ratios against stock Git over stock OpenSSH on the same machine, in one run.

Rows live in modules `rows_<subject>.py` of this package: functions that take a `Bench`, named in the module's `ROWS`.
A module that is there is run; `--only` chooses by the functions' names.
"""

from tests.bench.harness import Bench, Run
from tests.bench.plain import PlainGit
from tests.bench.table import Row

__all__ = ["Bench", "PlainGit", "Row", "Run"]
