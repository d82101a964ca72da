"""A comparison as JSON, tables, figures and a page. Nothing here measures."""
