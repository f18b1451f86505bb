"""The embedded server: PouchDB on Node, for trying things out and for tests. Production means Apache CouchDB."""
