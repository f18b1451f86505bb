"""How fast couchjobs is, as a share of what the database itself can do, measured in one run."""
