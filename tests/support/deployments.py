"""The smallest deployment that the tests run."""

from __future__ import annotations

CONFIG = """
[deployment]
name = "test"
[paths]
landing = "landing"
lake = "lake"
online_store = "online.lmdb"
reports = "reports"
data_docs = "data_docs"
[engine]
partitions = 2
[interactions]
types = ["click", "purchase"]
max_bad_share = 0.5
"""
