"""Workers: the functions that people write, and what becomes of one job that one of them is given."""
