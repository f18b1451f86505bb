"""CouchDB over HTTP: documents, views, feeds, group commit. It knows nothing of what the documents are for."""
