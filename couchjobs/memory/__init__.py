"""A system without CouchDB, in one process, for tests of one's own workers: made of the same parts as the real one."""
