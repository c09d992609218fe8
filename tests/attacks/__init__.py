"""Attacks on a running service: each row of a table, beside an ordinary client. ``python -m tests.attacks`` runs them.

Every attack is bounded in count and time, and goes to the loopback interface only.
"""
