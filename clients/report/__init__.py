"""A load test's result: its schema, files, tables, pictures and comparison. Nothing here measures."""
