"""`git-cluster doctor`: is this machine fit to serve, and if not, what is to be done.

examination   what is asked, beside what, and until when
machine       this machine: files, programs, disk          keyring    its two keys
database      the database                                 devices    rows and answers of devices
copies        the repositories, by the status document     judge      what figures mean
"""

from __future__ import annotations

from cluster.doctor.examination import examine
from cluster.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
