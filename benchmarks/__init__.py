"""Measurements and studies, and the tables of the documentation that they write."""
