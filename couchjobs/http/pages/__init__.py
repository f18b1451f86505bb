"""The dashboard: pages made by the server, which a small script keeps up to date. Nothing comes from other hosts."""
