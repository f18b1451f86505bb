"""Jobs and triggers over HTTP, for programs in any language, for browsers and for who watches."""
