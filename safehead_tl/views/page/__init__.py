"""The report: one offline page, its data and its words."""
