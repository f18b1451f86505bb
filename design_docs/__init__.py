"""The views of couchjobs, as files; `couchjobs.couch.design` reads them."""
