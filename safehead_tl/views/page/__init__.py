"""Offline pages: the report, its data and its words; and answers to read."""
